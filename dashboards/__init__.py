"""The Grafana dashboards as tables of panels: `python -m dashboards` (make dashboards) writes them as JSON.

`overview`, `tasks`, `workers` and `exporter` say what is shown, `promql` by which expressions, `panels` how
a panel of each kind looks. `build` makes JSON of it: `provisioning/` for Grafana to read from a folder,
`import/` to upload by hand.
"""
