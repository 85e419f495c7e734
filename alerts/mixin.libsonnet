// Alert and recording rules for Celery, on the metrics of the native profile: the one source of celery.rules.yml.
//
//   local celery = (import 'mixin.libsonnet') + { _config+:: { queueDepth: 5000 } };
//
// Records stand in the group of the alerts that use them, so no alert sees the value of an evaluation before.
// An exporter that is asked twice (two replicas on one broker) gives two of each series: gauges are taken by max or
// min, ratios are the same, and what is the difference of two sums is made within an instance first.
//
// Thresholds and windows, and the severity and the time that each alert is pending, are in thresholds.libsonnet. What is
// set here in _config goes before them: { queueDepth: 5000, alerts+: { CeleryWorkerDown+: { 'for': '5m' } } }. The health
// checks of the exporter keep theirs.
{
  _config+:: (import 'thresholds.libsonnet') + {
    // Labels that tell one Celery cluster (one broker) from another. Those that a series lacks do no harm. Add what
    // your scrape configuration adds, such as 'cluster'. Where one job scrapes exporters of several brokers: 'instance',
    // but then a pod that replaces another is a cluster of its own, and a job for each broker serves better.
    clusterLabels: ['job', 'namespace'],
    // Where the links of alerts lead: to the dashboards, and to the runbooks, which every exporter serves.
    grafanaUrl: 'http://localhost:3000',
    runbookUrl: 'http://localhost:9808/runbooks',

    // Matchers of task counters. What moves into worker="" or task_name="other" when a worker or an idle task is given up
    // looks like growth. One of them is in a window for less time than `for`; workers that are given up one after the
    // other, as a rolling restart does, are in it for longer, and what failed long ago fires CeleryHighFailureRate. So
    // with --task-labels worker it has to be 'worker!=""', with --series-ttl 'task_name!="other"'.
    taskSelector: '',
    // Regular expressions of task names: which run for long by intention, and which several workers each receive.
    longTasks: '',
    broadcastTasks: '',
    // Task name → seconds within which it has to succeed again, for what Beat starts: { 'reports.nightly': 26 * 3600 }.
    // It is asked of each cluster that knows the task; for one job only, record it in a file of yours (see `periodic`).
    periodicTasks: {},

    withinSeconds: 30,  // a bucket's bound: the share of executions that took no longer is recorded, for dashboards

    // Whether CeleryNoWorkersOnline fires where no message waits, too. Where workers are scaled to zero, that is rest.
    noWorkersAtRest: false,

    clockSkewSeconds: 2,  // between the exporter and Prometheus

    // An exporter that does not answer is known by what it said before; one that is no target any more is missed for as
    // long as it is not clear that this is meant.
    exporterKnown: '7d',
    exporterMissed: '1h',
  },

  local config = $._config,
  local words = { [name]: text(config[name]) for name in std.objectFields(config) } + {
    cluster: std.join(', ', config.clusterLabels),
    exporter: std.join(', ', std.filter(function(label) label != 'instance', config.clusterLabels) + ['instance']),
    tasks: selector(counted),
    within: selector(['le=~"%(bound)s|%(bound)s[.]0"' % { bound: text(config.withinSeconds) }] + counted),
    receivedTasks: selector(['state="RECEIVED"'] + counted),
    shortTasks: selector(butNot(config.longTasks)),
    startedShortTasks: selector(['state="STARTED"'] + butNot(config.longTasks)),
    retriedTasks: selector(['state="RETRY"'] + counted + butNot(config.pollingTasks)),
    startedTasks: selector(['state="STARTED"'] + counted + butNot(config.pollingTasks)),
    noBroadcasts: selector(butNot(config.broadcastTasks)),
    interval: 'task_name:celery_task_success_interval_seconds:max',
    // While the broker blocks publishers no event comes: what began before seems to go on. That is CeleryBrokerBlocked.
    notBlocked: 'unless on (%(cluster)s) max by (%(cluster)s) (celery_broker_blocked) == 1' % {
      cluster: std.join(', ', config.clusterLabels),
    },
  },
  // %g of 0 is an error in jsonnet 0.18, and %s of 0.1 is 0.10000000000000001.
  local text(value) = if !std.isNumber(value) then value else if value == std.floor(value) then '%d' % value else '%g' % value,
  local counted = if config.taskSelector == '' then [] else [config.taskSelector],
  local butNot(tasks) = if tasks == '' then [] else ['task_name!~' + std.escapeStringJson(tasks)],
  local selector(matchers) = if matchers == [] then '' else '{%s}' % std.join(',', matchers),

  local record(name, expr, labels={}) = {
    record: name % words,
    expr: expr % words,
    [if labels != {} then 'labels']: labels,
  },

  // Dashboards by uid, and the variables by which they show what an alert is about.
  local variables = { queue_name: 'queue', task_name: 'task', worker: 'worker' },
  // Some alerts are about no job that is known; what else they are about, they always name.
  local link(dashboard, about) =
    local job = 'var-job={{ . | urlquery }}';
    local named = ['var-%s={{ $labels.%s | urlquery }}' % [variables[label], label] for label in about];
    '%s/d/celery-%s' % [config.grafanaUrl, dashboard]
    + if about == []
    then '{{ with $labels.job }}?%s{{ end }}' % job
    else '?{{ with $labels.job }}%s&{{ end }}' % job + std.join('&', named),

  // `about` are the labels that an alert has besides those of the cluster.
  local alert(name, dashboard, expr, summary, description, about=[]) = {
    alert: name,
    expr: expr % words,
    'for': config.alerts[name]['for'],
    labels: { severity: config.alerts[name].severity },
    annotations: {
      summary: summary,
      description: description % words,
      runbook_url: '%s#%s' % [config.runbookUrl, std.asciiLower(name)],
      dashboard_url: link(dashboard, about),
    },
  },

  prometheusAlerts+:: {
    groups+: [
      { name: 'celery-tasks', rules: tasks },
      { name: 'celery-periodic', rules: periodic },
      { name: 'celery-queues', rules: queues },
      { name: 'celery-workers', rules: workers },
      { name: 'celery-exporter', rules: exporter },
    ],
  },

  local tasks = [
    record('job_state:celery_tasks:rate%(window)s', |||
      sum by (%(cluster)s, state) (rate(celery_tasks_total%(tasks)s[%(window)s]))
    |||),

    // REVOKED tasks never ran, and Celery says FAILURE as well for those that are REJECTED for good.
    record('job:celery_task_failures_per_finished:ratio_rate%(window)s', |||
      sum by (%(cluster)s) (job_state:celery_tasks:rate%(window)s{state="FAILURE"})
      /
      (sum by (%(cluster)s) (job_state:celery_tasks:rate%(window)s{state=~"SUCCESS|FAILURE"}) > 0)
    |||),
    // A failure is in the window for less time than `for`, so no single one fires, however few tasks there are.
    alert(
      'CeleryHighFailureRate',
      'tasks',
      'job:celery_task_failures_per_finished:ratio_rate%(window)s > %(failureRatio)s',
      'Celery tasks fail in {{ $labels.job }}',
      '{{ $value | humanizePercentage }} of the tasks that finished in the last %(window)s failed.',
    ),

    record('job:celery_task_retries_per_started:ratio_rate%(window)s', |||
      sum by (%(cluster)s) (rate(celery_tasks_total%(retriedTasks)s[%(window)s]))
      /
      (sum by (%(cluster)s) (rate(celery_tasks_total%(startedTasks)s[%(window)s])) > 0)
    |||),
    alert(
      'CeleryHighRetryRate',
      'tasks',
      'job:celery_task_retries_per_started:ratio_rate%(window)s > %(retryRatio)s',
      'Celery tasks are retried in {{ $labels.job }}',
      '{{ $value | humanizePercentage }} of the tasks that were started in the last %(window)s ended in a retry.',
    ),

    // Prometheus 3 stores le="30" as le="30.0".
    record('job_task_name:celery_task_runtime_within_bound:ratio_rate%(window)s', |||
      sum by (%(cluster)s, task_name) (rate(celery_task_runtime_seconds_bucket%(within)s[%(window)s]))
      /
      (sum by (%(cluster)s, task_name) (rate(celery_task_runtime_seconds_count%(tasks)s[%(window)s])) > 0)
    |||),

    record('job_task_name:celery_task_runtime_seconds:mean%(window)s', |||
      sum by (%(cluster)s, task_name) (rate(celery_task_runtime_seconds_sum%(tasks)s[%(window)s]))
      /
      (sum by (%(cluster)s, task_name) (rate(celery_task_runtime_seconds_count%(tasks)s[%(window)s])) > 0)
    |||),
    alert(
      'CelerySlowTaskProcessing',
      'tasks',
      'job_task_name:celery_task_runtime_seconds:mean%(window)s%(shortTasks)s > %(meanRuntimeSeconds)s',
      'Celery task {{ $labels.task_name }} is slow',
      'It took {{ $value | humanizeDuration }} on average over the last %(window)s.',
      ['task_name'],
    ),

    alert(
      'CeleryTaskStuck',
      'tasks',
      |||
        time() - min by (%(cluster)s, task_name) (
          celery_task_oldest_timestamp_seconds%(startedShortTasks)s
        ) > %(stuckSeconds)s
        %(notBlocked)s
      |||,
      'Celery task {{ $labels.task_name }} does not end',
      'One was started {{ $value | humanizeDuration }} ago, and nobody has said since that it ended.',
      ['task_name'],
    ),

    // Workers that are down have no active tasks: then the series is absent, and what they had started is left over.
    // One that is up and has none either sends no heartbeats, so nobody knows what is an orphan.
    record('job_instance:celery_tasks_orphaned:sum', |||
      sum by (%(exporter)s) (celery_tasks_in_flight{state="STARTED"})
      - (
        sum by (%(exporter)s) (celery_worker_active_tasks)
        or
        0 * sum by (%(exporter)s) (celery_tasks_in_flight{state="STARTED"})
      )
      unless on (%(exporter)s)
        (celery_worker_up == 1 unless on (%(exporter)s, worker) celery_worker_active_tasks)
    |||),
    // The mean first: the greater of what two exporters say at a moment would be above the mean of either.
    alert(
      'CeleryTasksOrphaned',
      'tasks',
      |||
        max by (%(cluster)s) (avg_over_time(job_instance:celery_tasks_orphaned:sum[%(longWindow)s])) > %(orphans)s
        %(notBlocked)s
      |||,
      'Celery tasks of {{ $labels.job }} have lost their worker',
      'Tasks that were started, have not ended, and that no worker says it executes: {{ printf "%%.0f" $value }}, ' +
      'on average over %(longWindow)s.',
    ),

    record('job_task_name:celery_task_redeliveries_per_received:ratio_rate%(window)s', |||
      sum by (%(cluster)s, task_name) (rate(celery_task_redeliveries_total%(tasks)s[%(window)s]))
      /
      (sum by (%(cluster)s, task_name) (rate(celery_tasks_total%(receivedTasks)s[%(window)s])) > 0)
    |||),
    alert(
      'CeleryRedeliveryStorm',
      'tasks',
      'job_task_name:celery_task_redeliveries_per_received:ratio_rate%(window)s%(noBroadcasts)s > %(redeliveryRatio)s',
      'Celery task {{ $labels.task_name }} is delivered again and again',
      '{{ $value | humanizePercentage }} of those received in the last %(window)s had been received before.',
      ['task_name'],
    ),
  ],

  // A template: it looks at the tasks for which there is such a record, made from `periodicTasks` or in a file of yours:
  //   - record: task_name:celery_task_success_interval_seconds:max
  //     labels: {task_name: reports.nightly}  # and job: NAME, where not every cluster that knows the task has it run
  //     expr: vector(93600)
  local periodic = [
    record(
      '%(interval)s',
      'vector(%d)' % config.periodicTasks[name],
      { task_name: name },
    )
    for name in std.objectFields(config.periodicTasks)
  ] + [
    // Its last success, or the start of an exporter that knows the task and saw none.
    record('job_task_name:celery_task_since_success_seconds:min', |||
      time() - (
        max by (%(cluster)s, task_name) (celery_task_last_timestamp_seconds{state="SUCCESS"})
        or
        max by (%(cluster)s, task_name) (
          0 * celery_tasks_total{state="SUCCESS"}
          + on (%(exporter)s) group_left ()
          max by (%(exporter)s) (process_start_time_seconds and on (%(exporter)s) celery_exporter_build_info)
        )
      )
    |||),
    // In turn: what is due in this job; what is due in each that knows it; and, with a value of 0, what nobody knows.
    alert(
      'CeleryPeriodicTaskAbsent',
      'tasks',
      |||
        (
          job_task_name:celery_task_since_success_seconds:min
          > on (job, task_name) group_left ()
          max by (job, task_name) (%(interval)s{job!=""})
          or
          (
            job_task_name:celery_task_since_success_seconds:min
            unless on (job, task_name)
            %(interval)s{job!=""}
          )
          > on (task_name) group_left ()
          max by (task_name) (%(interval)s{job=""})
        )
        %(notBlocked)s
        or
        0 * (
          max by (job, task_name) (%(interval)s{job!=""})
          unless on (job, task_name) celery_tasks_total
          or
          max by (task_name) (%(interval)s{job=""})
          unless on (task_name) celery_tasks_total
        )
        and on () max(celery_broker_up) == 1
      |||,
      'Celery task {{ $labels.task_name }} has not succeeded in time',
      'It is due at least once in {{ with printf `max(%(interval)s{task_name=%%q,job=%%q}) or ' +
      'max(%(interval)s{task_name=%%q,job=""})` $labels.task_name $labels.job $labels.task_name | query }}' +
      '{{ . | first | value | humanizeDuration }}{{ end }}. ' +
      '{{ if $value }}It did not succeed for {{ $value | humanizeDuration }}.{{ else }}Nobody has spoken of it.{{ end }}',
      ['task_name'],
    ),
  ],

  local queues = [
    alert(
      'CeleryHighQueueDepth',
      'overview',
      'max by (%(cluster)s, queue_name) (celery_queue_length) > %(queueDepth)s',
      'Celery queue {{ $labels.queue_name }} is long',
      '{{ printf "%%.0f" $value }} messages wait in it.',
      ['queue_name'],
    ),

    // Growing, for some queues are kept full on purpose.
    alert(
      'CeleryQueueWithoutConsumers',
      'overview',
      |||
        max by (%(cluster)s, queue_name) (celery_queue_length) > 0
        and max by (%(cluster)s, queue_name) (delta(celery_queue_length[10m])) > 0
        and max by (%(cluster)s, queue_name) (celery_queue_consumers) == 0
      |||,
      'Nobody consumes Celery queue {{ $labels.queue_name }}, which grows',
      '{{ printf "%%.0f" $value }} messages wait in it, more than there were 10 minutes ago, and no worker takes any.',
      ['queue_name'],
    ),

    record('job_queue_name:celery_task_queue_wait_seconds:p95_rate%(window)s', |||
      histogram_quantile(0.95,
        sum by (%(cluster)s, queue_name, le) (rate(celery_task_queue_wait_seconds_bucket%(tasks)s[%(window)s]))
      ) >= 0
    |||),
    alert(
      'CeleryQueueWaitHigh',
      'overview',
      'job_queue_name:celery_task_queue_wait_seconds:p95_rate%(window)s > %(queueWaitSeconds)s',
      'Tasks in Celery queue {{ $labels.queue_name }} wait for long',
      'One in twenty of those that were started in the last %(window)s had waited for ' +
      '{{ $value | humanizeDuration }} or longer.',
      ['queue_name'],
    ),

    // One with an eta counts from its eta, so it may be younger than nothing.
    record('job_queue_name:celery_queue_oldest_age_seconds:max', |||
      time() - min by (%(cluster)s, queue_name) (celery_queue_oldest_timestamp_seconds)
    |||),
    alert(
      'CeleryOldestMessageWaiting',
      'overview',
      'job_queue_name:celery_queue_oldest_age_seconds:max > %(oldestWaitingSeconds)s',
      'A message in Celery queue {{ $labels.queue_name }} waits for long',
      'The message at its head has waited for {{ $value | humanizeDuration }}.',
      ['queue_name'],
    ),
  ],

  local workers = [
    // Without an event subscription workers are not known: that is CeleryExporterBlind. Work waits in a queue, or
    // unacknowledged; where no queue is measured, it may.
    alert(
      'CeleryNoWorkersOnline',
      'workers',
      |||
        max by (%(cluster)s) (celery_workers_online) == 0
      ||| + (if config.noWorkersAtRest then '' else |||
               and on (%(cluster)s) (
                 max by (%(cluster)s) (celery_queue_length) > 0
                 or
                 max by (%(cluster)s) (celery_broker_unacked_messages) > 0
                 or
                 max by (%(cluster)s) (celery_workers_online) unless on (%(cluster)s) celery_queue_length
               )
             |||) + |||
        unless max by (%(cluster)s) (celery_broker_up) == 0
        %(notBlocked)s
      |||,
      'No Celery worker is online in {{ $labels.job }}',
      'No task has been executed for 2 minutes at least.',
    ),

    // One that says goodbye (a roll-out, scaling down) is heard after it was last seen up; one that dies is seen up
    // until it has been silent for --worker-timeout. Of one that was not up in the window nobody can tell.
    alert(
      'CeleryWorkerDown',
      'workers',
      |||
        max by (%(cluster)s, worker, hostname) (celery_worker_up) == 0
        and on (%(cluster)s, worker)
          max by (%(cluster)s, worker) (max_over_time(celery_worker_up[%(longWindow)s])) == 1
        unless on (%(cluster)s, worker)
          max by (%(cluster)s, worker) (celery_worker_last_heartbeat_timestamp_seconds) + %(clockSkewSeconds)s
          >
          max by (%(cluster)s, worker) (
            max_over_time((timestamp(celery_worker_up) and celery_worker_up == 1)[%(longWindow)s:15s])
          )
      |||,
      'Celery worker {{ $labels.worker }} is down',
      'It fell silent without a goodbye. What it was executing may be lost, or wait to be delivered again.',
      ['worker'],
    ),

    // A pool that grows by itself (--autoscale) is full at its limit, any other one at the size that it has now.
    record('job_worker:celery_worker_active_tasks_per_pool_size:ratio', |||
      max by (%(cluster)s, worker) (celery_worker_active_tasks)
      /
      (max by (%(cluster)s, worker) (celery_worker_pool_max or celery_worker_pool_size) > 0)
    |||),
    alert(
      'CeleryWorkerPoolFull',
      'workers',
      'job_worker:celery_worker_active_tasks_per_pool_size:ratio >= 1 %(notBlocked)s',
      'The pool of Celery worker {{ $labels.worker }} is full',
      'Its active tasks are {{ $value | humanizePercentage }} of what its pool can execute at once.',
      ['worker'],
    ),

    alert(
      'CeleryTaskEventsDisabled',
      'workers',
      |||
        max by (%(cluster)s, worker) (celery_worker_task_events_enabled) == 0
        and on (%(cluster)s, worker)
          max by (%(cluster)s, worker) (celery_worker_up) == 1
      |||,
      'Celery worker {{ $labels.worker }} sends no task events',
      'It executes tasks, and none of them is counted.',
      ['worker'],
    ),
  ],

  local exporter = [
    // In turn: a target that was an exporter does not answer; a cluster's targets are gone, and nobody has taken their
    // place; there is no exporter at all, nor a target that was one.
    alert(
      'CeleryExporterDown',
      'exporter',
      |||
        (
          up == 0
          and on (%(exporter)s) last_over_time(celery_exporter_build_info[%(exporterKnown)s])
        )
        or
        (
          group by (%(cluster)s) (last_over_time(celery_exporter_build_info[%(exporterMissed)s]))
          unless on (%(cluster)s) celery_exporter_build_info
          unless on (%(cluster)s)
            (up and on (%(exporter)s) last_over_time(celery_exporter_build_info[%(exporterMissed)s]))
        )
        or
        (
          absent(last_over_time(celery_exporter_build_info[%(exporterMissed)s]))
          unless on ()
            (up == 0 and on (%(exporter)s) last_over_time(celery_exporter_build_info[%(exporterKnown)s]))
        )
      |||,
      'A Celery exporter cannot be scraped',
      '{{ if $labels.instance }}Target {{ $labels.instance }} does not answer. ' +
      '{{ else if $labels.job }}No target of {{ $labels.job }} is left. {{ else }}There is no target. {{ end }}' +
      'No other alert on what it watches can fire.',
    ),

    // Heartbeats come every few seconds from every worker: no event for long is no subscription, or the wrong one.
    alert(
      'CeleryExporterBlind',
      'exporter',
      |||
        max by (%(exporter)s) (celery_broker_up) == 0
        or
        (
          max by (%(exporter)s) (celery_workers_online) > 0
          unless
          time() - max by (%(exporter)s) (celery_exporter_last_event_timestamp_seconds) < %(silenceSeconds)s
          unless
          max by (%(exporter)s) (celery_broker_blocked) == 1
        )
      |||,
      'The Celery exporter {{ $labels.instance }} hears nothing',
      'Its event subscription is not open, or no event came for %(silenceSeconds)s s though workers are up. ' +
      'What it counts stands still.',
    ),

    alert(
      'CeleryBrokerBlocked',
      'exporter',
      'max by (%(cluster)s) (celery_broker_blocked) == 1',
      'RabbitMQ blocks publishers in {{ $labels.job }}',
      'It has a memory or disk alarm: no task, event or heartbeat can be sent, and what the exporter counts stands still.',
    ),

    record('job:celery_exporter_events_missed_per_processed:ratio_rate%(longWindow)s', |||
      sum by (%(cluster)s) (rate(celery_exporter_events_missed_total[%(longWindow)s]))
      /
      (sum by (%(cluster)s) (rate(celery_worker_processed_tasks_total[%(longWindow)s])) > 0)
    |||),
    alert(
      'CeleryEventsMissed',
      'exporter',
      'job:celery_exporter_events_missed_per_processed:ratio_rate%(longWindow)s > %(missedRatio)s',
      'The Celery exporter of {{ $labels.job }} misses events',
      '{{ $value | humanizePercentage }} of the tasks that workers processed in the last %(longWindow)s are not counted.',
    ),

    alert(
      'CelerySeriesOverflow',
      'exporter',
      'max by (%(cluster)s) (increase(celery_exporter_series_overflow_total[%(longWindow)s])) > 0',
      'The Celery exporter of {{ $labels.job }} has no room for more series',
      '{{ printf "%%.0f" $value }} times in the last %(longWindow)s a task or an exception was counted as other.',
    ),
  ],
}
