// Service level objectives: recording rules and burn-rate alerts for the rows of `objectives`. mixin.libsonnet adds them, and
// has the settings in its _config:
//
//   objectives: [{ name: 'mail', task: 'mail.send', runtimeSeconds: 10, queueWaitSeconds: 60, objective: 0.99 }],
//
// Each objective has up to three indicators, the label `sli`. The objective and its error budget apply to each of them:
//
//   success  tasks that finished (SUCCESS or FAILURE), and those of them that succeeded
//   runtime  tasks that finished, and those of them that ran for at most `runtimeSeconds`
//   wait     tasks that started, and those of them that waited in the queue for at most `queueWaitSeconds`
//
// Factors and windows of the alerts are those of the Google SRE workbook, for an error budget of 30 days.
{
  local config = $._config,
  local level = 'job_objective_sli:celery_objective_',
  local budget = level + 'error_budget:ratio',
  local errors(window) = level + 'errors:ratio_rate' + window,
  local numberText(value) = if value == std.floor(value) then '%d' % value else '%g' % value,

  // -- the table ------------------------------------------------------------------------------------------------------

  local empty = { name: '', task: null, queue: null, runtimeSeconds: null, queueWaitSeconds: null, objective: 0 },
  local checked(row) =
    local objective = empty + row;
    local unknown = std.setDiff(std.objectFields(row), std.objectFields(empty));
    assert objective.name != '' : 'an objective has no name: %s' % std.toString(row);
    assert unknown == [] : 'objective %s: unknown fields: %s' % [objective.name, std.join(', ', unknown)];
    assert objective.objective > 0 && objective.objective <= 0.99999 :
           'objective %s: objective is %s. It must be above 0 and at most 0.99999.'
           % [objective.name, numberText(objective.objective)];
    objective,
  local objectives =
    local rows = std.map(checked, config.objectives);
    local names = std.sort([row.name for row in rows]);
    assert names == std.uniq(names) : 'two objectives have the same name: %s' % std.join(', ', names);
    rows,

  local bound(objective, field, bucketSetting, option) =
    local seconds = objective[field];
    local buckets = config[bucketSetting];
    local lower = std.filter(function(bucket) bucket < seconds, buckets);
    local higher = std.filter(function(bucket) bucket > seconds, buckets);
    local nearest = std.reverse(lower)[:1] + higher[:1];
    if std.member(buckets, seconds) then seconds
    else error 'objective %s: %s is %s, which is not the bound of a bucket. Nearest: %s. Other bounds: %s and %s.' % [
      objective.name,
      field,
      numberText(seconds),
      std.join(' and ', std.map(numberText, nearest)),
      option,
      bucketSetting,
    ],

  // -- indicators -----------------------------------------------------------------------------------------------------

  // Prometheus 3 stores le="30" as le="30.0".
  local le(seconds) =
    if seconds == std.floor(seconds) then 'le=~"%(bound)d|%(bound)d[.]0"' % { bound: seconds }
    else 'le="%s"' % numberText(seconds),

  local finished = ['state=~"SUCCESS|FAILURE"'],
  local indicators(objective) = [
    { sli: 'success', tasks: ['celery_tasks_total', finished], good: ['celery_tasks_total', ['state="SUCCESS"']] },
  ] + (
    if objective.runtimeSeconds == null then [] else [{
      sli: 'runtime',
      tasks: ['celery_task_runtime_seconds_count', finished],
      good: [
        'celery_task_runtime_seconds_bucket',
        [le(bound(objective, 'runtimeSeconds', 'runtimeBuckets', '--buckets'))] + finished,
      ],
    }]
  ) + (
    if objective.queueWaitSeconds == null then [] else [{
      sli: 'wait',
      tasks: ['celery_task_queue_wait_seconds_count', []],
      good: [
        'celery_task_queue_wait_seconds_bucket',
        [le(bound(objective, 'queueWaitSeconds', 'waitBuckets', '--queue-wait-buckets'))],
      ],
    }]
  ),

  // -- rules ----------------------------------------------------------------------------------------------------------

  local rate(objective, counter, window) =
    local equal(label, value) = if value == null then [] else ['%s=%s' % [label, std.escapeStringJson(value)]];
    local matchers = equal('task_name', objective.task) + equal('queue_name', objective.queue) + counter[1]
                     + if config.taskSelector == '' then [] else [config.taskSelector];
    'sum by (%s) (rate(%s{%s}[%s]))' % [
      std.join(', ', config.clusterLabels),
      counter[0],
      std.join(',', matchers),
      window,
    ],

  local record(name, expr, labels) = { record: name, expr: expr, labels: labels },
  local records(objective) = std.flatMap(
    function(indicator)
      local tasks(window) = rate(objective, indicator.tasks, window);
      local good(window) = rate(objective, indicator.good, window);
      local labels = { objective: objective.name, sli: indicator.sli };
      [
        record(level + 'tasks:rate5m', tasks('5m'), labels),
        record(level + 'good_tasks:rate5m', good('5m'), labels),
      ] + [
        record(errors(window), '1 - %s\n/ (%s > 0)\n' % [good(window), tasks(window)], labels)
        for window in ['5m', '30m', '1h', '6h', '3d']
      ],
    indicators(objective)
  ) + [
    // It has the labels of the ratios, and their values do not matter.
    record(
      budget,
      '0 * %s{objective=%s} + (1 - %s)' % [
        errors('3d'),
        std.escapeStringJson(objective.name),
        numberText(objective.objective),
      ],
      { objective: objective.name },
    ),
  ],

  // A long window alone would fire for long after the errors have ended, and a short one alone for a few errors.
  local burns(factor, long, short) =
    '%(long)s / %(budget)s > %(factor)g\nand\n%(short)s / %(budget)s > %(factor)g\n' % {
      long: errors(long),
      short: errors(short),
      budget: budget,
      factor: factor,
    },

  local alert(name, expr, description) = {
    alert: name,
    expr: expr,
    'for': config.alerts[name]['for'],
    labels: { severity: config.alerts[name].severity },
    annotations: {
      summary: 'Celery tasks in {{ $labels.job }} miss objective {{ $labels.objective }} ({{ $labels.sli }}) ' +
               '{{ printf "%.1f" $value }} times as often as it allows',
      description: description + ' Check the dashboard for when the errors began, and compare with releases and other alerts.',
      runbook_url: '%s#%s' % [config.runbookUrl, std.asciiLower(name)],
      dashboard_url: config.grafanaUrl + '/d/celery-objectives?var-job={{ $labels.job | urlquery }}',
    },
  },

  prometheusAlerts+:: {
    groups+: if objectives == [] then [] else [
      {
        name: 'celery-objectives',
        rules: std.flatMap(records, objectives) + [
          alert(
            'CeleryErrorBudgetBurnFast',
            burns(14.4, '1h', '5m'),
            'More than 2% of an error budget of 30 days was spent in one hour.',
          ),
          alert(
            'CeleryErrorBudgetBurnSlow',
            burns(6, '6h', '30m') + 'or\n' + burns(1, '3d', '6h'),
            'More than 5% of an error budget of 30 days was spent in 6 hours, or 10% in 3 days.',
          ),
        ],
      },
    ],
  },
}
