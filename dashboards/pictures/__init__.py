"""Pictures of the dashboards: `draw` asks Prometheus and starts a browser, `page.jsx` is what that shows."""
