// Prints the rules of the mixin as YAML in a layout for readers. Used by make alerts. std.manifestYamlDoc sorts `expr` below
// `annotations`, and takes seconds.
local groups = (import 'mixin.libsonnet').prometheusAlerts.groups;

local quoted(text) = local json = std.toString([text]); std.substr(json, 1, std.length(json) - 2);
local block(text) = std.join('\n      ', ['|'] + std.split(std.rstripChars(text, '\n'), '\n'));
local mapping(rule, name) =
  if name in rule
  then ['    %s:' % name] + ['      %s: %s' % [key, quoted(rule[name][key])] for key in std.objectFields(rule[name])]
  else [];
local kind(rule) = if 'alert' in rule then 'alert' else 'record';

local lines(rule) =
  ['  - %s: %s' % [kind(rule), rule[kind(rule)]]]
  + ['    expr: ' + if std.endsWith(rule.expr, '\n') then block(rule.expr) else quoted(rule.expr)]
  + (if 'for' in rule then ['    for: ' + rule['for']] else [])
  + mapping(rule, 'labels')
  + mapping(rule, 'annotations');

std.lines(
  ['# Generated from mixin.libsonnet by make alerts. Change thresholds there, in _config.', 'groups:']
  + std.flatMap(function(group) ['- name: ' + group.name, '  rules:'] + std.flatMap(lines, group.rules), groups)
)
