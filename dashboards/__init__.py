"""The Grafana dashboards as tables of panels. `make dashboards` writes them as JSON.

`overview`, `tasks`, `workers`, `exporter` and `objectives` list the panels. `promql` has their expressions,
and `panels` the settings of each kind of panel. `build` generates the JSON: `provisioning/` for a folder that
Grafana reads, `import/` for an upload by hand.
"""
