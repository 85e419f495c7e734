"""Pictures for docs/img: `draw` makes those of the dashboards (`page.jsx`), `status` of the pages."""
