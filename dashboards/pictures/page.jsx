// Draws a dashboard with Grafana's components and the results of its queries (window.PAGE, see draw.py).
// Uses require, because esbuild resolves the imports of CommonJS modules in the ES modules of these packages differently.
const {
  FieldType,
  ThemeContext,
  applyFieldOverrides,
  createDataFrame,
  createTheme,
  dateTime,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} = require("@grafana/data");
const { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } = require("@grafana/ui");
const { useEffect, useState } = require("react");
const { createRoot } = require("react-dom/client");

const { board, answers, from, to, width } = window.PAGE;
const CELL = 38; // Grafana's grid: 30 px and a gap of 8
const GAP = 8;
const TOP = 44;
const theme = createTheme({ colors: { mode: "dark" } });
const range = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };

const { mergeTransformer, organizeFieldsTransformer } = standardTransformers;
standardTransformersRegistry.setInit(() =>
  [mergeTransformer, organizeFieldsTransformer].map((transformation) => ({ ...transformation, transformation })),
);

// Grafana's core applies defaults and overrides with a registry that is not in the published packages.
function configOf(panel, name) {
  const { defaults, overrides } = panel.fieldConfig;
  const color = { mode: panel.type === "timeseries" ? "palette-classic" : "thresholds" };
  const config = { color, ...defaults, custom: { ...defaults.custom } };
  for (const { matcher, properties } of overrides.filter(({ matcher }) => matcher.options === name)) {
    for (const { id, value } of properties.filter(({ id }) => id !== "links")) {
      if (id.startsWith("custom.")) config.custom[id.slice(7)] = value;
      else config[id] = value;
    }
  }
  return config;
}

const displayed = (frames) =>
  applyFieldOverrides({
    data: frames,
    fieldConfig: { defaults: {}, overrides: [] },
    replaceVariables: (text) => text,
    theme,
    timeZone: "utc",
  });

function legendOf(target, labels) {
  return target.legendFormat.replace(/\{\{(\w+)\}\}/g, (_, name) => labels[name] ?? "");
}

function Lines({ panel, width, height }) {
  const frames = panel.targets.flatMap((target) =>
    answers[panel.id][target.refId].map(({ metric, values }) => {
      const name = legendOf(target, metric);
      return createDataFrame({
        refId: target.refId,
        fields: [
          { name: "Time", type: FieldType.time, values: values.map(([time]) => time * 1000), config: {} },
          {
            name: "Value",
            type: FieldType.number,
            values: values.map(([, value]) => (value === "NaN" ? null : Number(value))),
            config: { ...configOf(panel, name), displayNameFromDS: name },
          },
        ],
      });
    }),
  );
  if (frames.length === 0) return <NoData panel={panel} />;
  return (
    <TimeSeries
      frames={displayed(frames)}
      width={width}
      height={height}
      timeRange={range}
      timeZone="utc"
      legend={panel.options.legend}
    />
  );
}

function Stat({ panel, width, height }) {
  const [sample] = answers[panel.id].A;
  const config = configOf(panel, "");
  const [frame] = displayed([
    createDataFrame({
      fields: [{ name: "Value", type: FieldType.number, values: sample ? [Number(sample.value[1])] : [], config }],
    }),
  ]);
  const field = frame.fields[0];
  const value = sample ? field.display(field.values[0]) : { text: config.noValue, numeric: NaN };
  return (
    <BigValue
      value={{ ...value, title: "" }}
      width={width}
      height={height}
      theme={theme}
      colorMode={panel.options.colorMode}
      graphMode={panel.options.graphMode}
      textMode="value"
    />
  );
}

function Rows({ panel, width, height }) {
  const [frame, setFrame] = useState(null);
  useEffect(() => {
    const frames = panel.targets.map((target) => {
      const samples = answers[panel.id][target.refId];
      const labels = [...new Set(samples.flatMap(({ metric }) => Object.keys(metric)))];
      return createDataFrame({
        refId: target.refId,
        fields: [
          { name: "Time", type: FieldType.time, values: samples.map(({ value }) => value[0] * 1000), config: {} },
          ...labels.map((name) => ({
            name,
            type: FieldType.string,
            values: samples.map(({ metric }) => metric[name]),
            config: {},
          })),
          {
            name: `Value #${target.refId}`,
            type: FieldType.number,
            values: samples.map(({ value }) => Number(value[1])),
            config: {},
          },
        ],
      });
    });
    const subscription = transformDataFrame(panel.transformations, frames).subscribe(([merged]) => {
      const fields = merged.fields.map((field) => {
        const name = field.config.displayName ?? field.name;
        return { ...field, name, config: { ...configOf(panel, name), displayName: name } };
      });
      setFrame(displayed([{ ...merged, fields }])[0]);
    });
    return () => subscription.unsubscribe();
  }, [panel]);
  return frame && <Table data={frame} width={width} height={height} cellHeight={panel.options.cellHeight} />;
}

// The columns of a query, without a transformation.
function Points({ panel, width, height }) {
  const [series] = answers[panel.id].A;
  if (!series) return <NoData panel={panel} />;
  const [frame] = displayed([
    createDataFrame({
      fields: series.columns.map((name, index) => {
        const values = series.values.map((row) => row[index]);
        const type = name === "Time" ? FieldType.time : FieldType[typeof values[0]];
        return { name, type, values, config: { ...configOf(panel, name), displayName: name } };
      }),
    }),
  ]);
  return (
    <Table
      data={frame}
      width={width}
      height={height}
      cellHeight={panel.options.cellHeight}
      initialSortBy={panel.options.sortBy}
    />
  );
}

const NoData = ({ panel }) => (
  <p style={{ padding: 16, color: theme.colors.text.secondary }}>{panel.fieldConfig.defaults.noValue ?? "No data"}</p>
);

const Unsupported = () => (
  <p style={{ padding: 16, color: theme.colors.text.secondary }}>
    A heatmap. Grafana does not publish this component, so only Grafana can draw it.
  </p>
);

const KINDS = { timeseries: Lines, stat: Stat, heatmap: Unsupported };
const kindOf = (panel) => KINDS[panel.type] ?? (panel.transformations ? Rows : Points);

function Placed({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { position: "absolute", left: (x * width) / 24 + GAP, top: TOP + y * CELL };
  if (panel.type === "row") {
    return <h4 style={{ ...place, margin: 0, paddingTop: 8 }}>{panel.title}</h4>;
  }
  const Kind = kindOf(panel);
  return (
    <div style={place}>
      <PanelChrome title={panel.title} width={(w * width) / 24 - GAP} height={h * CELL - GAP}>
        {(width, height) => <Kind panel={panel} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

createRoot(document.getElementById("page")).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <h2 style={{ position: "absolute", left: GAP, top: GAP, margin: 0 }}>{board.title}</h2>
    {board.panels.map((panel) => (
      <Placed key={panel.id} panel={panel} />
    ))}
  </ThemeContext.Provider>,
);
