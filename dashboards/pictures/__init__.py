"""Pictures for docs/img: `draw` makes those of the dashboards (`page.jsx`), `pages` those of the pages."""
