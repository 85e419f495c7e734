// make alerts: what celery.rules.yml holds.
'# Made from mixin.libsonnet by make alerts; thresholds are set there, in _config.\n' +
std.manifestYamlDoc((import 'mixin.libsonnet').prometheusAlerts, quote_keys=false)
