// The type of a dashboard's JSON, by Grafana's types: the page, and for each panel the options of its plugin.
import type { DataQuery, Dashboard, FieldConfigSource, Panel, RowPanel } from "@grafana/schema";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as logs from "@grafana/schema/dist/esm/raw/composable/logs/panelcfg/x/LogsPanelCfg_types.gen";
import type * as loki from "@grafana/schema/dist/esm/raw/composable/loki/dataquery/x/LokiDataQuery_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// JSON has the values of enums, not their names.
export type Json<T> = unknown extends T
  ? T
  : T extends string
    ? `${T}`
    : T extends object
      ? { [K in keyof T]: Json<T[K]> }
      : T;

// The query type of Prometheus is in a separate package. These are the documented fields of its data source.
interface PromQuery extends DataQuery {
  exemplar?: boolean;
  expr: string;
  format?: "time_series" | "table" | "heatmap";
  instant?: boolean;
  interval?: string;
  legendFormat?: string;
  range?: boolean;
}

// The query type of InfluxDB is not published. These are the fields of a raw query of its data source.
interface InfluxQuery extends DataQuery {
  alias?: string;
  query: string;
  rawQuery: true;
  resultFormat: "time_series" | "table";
}

type Query = PromQuery | loki.LokiDataQuery | InfluxQuery;

// FieldConfig accepts any custom option. This type accepts those of the plugin only.
interface Fields<TCustom> extends Omit<FieldConfigSource, "defaults"> {
  defaults: Omit<FieldConfigSource["defaults"], "custom"> & { custom?: TCustom };
}

type Of<TType extends string, TOptions, TCustom> = Omit<Panel, "type" | "options" | "fieldConfig" | "targets"> & {
  type: TType;
  options: TOptions;
  fieldConfig: Fields<TCustom>;
  targets: Query[];
};

type AnyPanel =
  | Of<"stat", stat.Options, never>
  | Of<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | Of<"heatmap", heatmap.Options, heatmap.FieldConfig>
  | Of<"logs", logs.Options, never>
  | Of<"table", table.Options, Partial<table.FieldConfig>>
  | RowPanel;

export type Provisioned = Json<Omit<Dashboard, "panels"> & { panels: AnyPanel[] }>;
