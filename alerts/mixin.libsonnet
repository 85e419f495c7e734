// Alerting and recording rules for Celery, on the metrics of the native profile. celery.rules.yml is generated from here.
//
//   local celery = (import 'mixin.libsonnet') + { _config+:: { queueDepth: 5000 } };
//
// A recording rule is in the same group as the alerts that use it: rules of a group are evaluated in order, so the alerts
// use the value of the same evaluation.
// Two replicas of the exporter on one broker expose each series twice. Gauges are therefore aggregated by max or min, a
// ratio is the same for both, and a difference of two sums is calculated for each instance first. Shards each have a part of
// the tasks, so their sums are added up: job_instance_part:celery_exporter:group tells both apart.
//
// thresholds.libsonnet contains the thresholds, the windows, and the severity and pending time of each alert. Values that
// are set in _config override it: { queueDepth: 5000, alerts+: { CeleryWorkerDown+: { 'for': '5m' } } }. The health checks
// of the exporter keep their own thresholds.
{
  _config+:: (import 'thresholds.libsonnet') + {
    // Labels that identify a Celery cluster (one broker). Labels that a series does not have are ignored. Add the ones that
    // your scrape configuration sets, such as 'cluster'. If one job scrapes exporters of several brokers, add 'instance'.
    // A job for each broker is better: with 'instance', a pod that replaces another one counts as a new cluster.
    clusterLabels: ['job', 'namespace'],
    // Base URLs of the links in alerts: Grafana for the dashboards, and the runbooks, which every exporter serves.
    grafanaUrl: 'http://localhost:3000',
    runbookUrl: 'http://localhost:9808/runbooks',

    // Label matchers for task counters. When the exporter removes a worker or an idle task, its counts move to worker="" or
    // task_name="other", which looks like growth. A single removal stays in the window for less time than `for`. Workers
    // that are removed one after the other, as in a rolling restart, stay in it for longer, and their old failures fire
    // CeleryHighFailureRate. Set 'worker!=""' with --task-labels worker, and 'task_name!="other"' with --series-ttl.
    taskSelector: '',
    // Regular expressions for names of tasks that are meant to run long, and of tasks that several workers receive.
    longTasks: '',
    broadcastTasks: '',

    withinSeconds: 30,  // upper bound of a bucket; dashboards use the recorded share of executions within it

    // Whether CeleryNoWorkersOnline also fires while no message waits. With workers scaled to zero, that state is normal.
    noWorkersAtRest: false,

    clockSkewSeconds: 2,  // between the clocks of the exporter and Prometheus

    // A target that does not answer counts as an exporter if it was one within `exporterKnown`. A target that was removed
    // is reported for `exporterMissed`, since the removal may be intended.
    exporterKnown: '7d',
    exporterMissed: '1h',

    // Service level objectives, such as
    //   { name: 'mail', task: 'mail.send', runtimeSeconds: 10, queueWaitSeconds: 60, objective: 0.99 }
    // Without `task` or `queue`, an objective applies to all of them. `runtimeSeconds` and `queueWaitSeconds` must be bounds
    // of buckets, because a histogram has no counts between two bounds. Rules: objectives.libsonnet.
    objectives: [],
    // The bounds of the exporter, in seconds: --buckets and --queue-wait-buckets.
    runtimeBuckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
    waitBuckets: [0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800, 3600],
    alerts+: {
      CeleryErrorBudgetBurnFast: { severity: 'critical', 'for': '2m' },
      CeleryErrorBudgetBurnSlow: { severity: 'warning', 'for': '15m' },
    },
  },

  local config = $._config,
  local parameters = { [name]: numberText(config[name]) for name in std.objectFields(config) } + {
    cluster: std.join(', ', config.clusterLabels),
    exporter: std.join(', ', std.filter(function(label) label != 'instance', config.clusterLabels) + ['instance']),
    tasks: selector(taskMatchers),
    within: selector(['le=~"%(bound)s|%(bound)s[.]0"' % { bound: numberText(config.withinSeconds) }] + taskMatchers),
    receivedTasks: selector(['state="RECEIVED"'] + taskMatchers),
    shortTasks: selector(excluding(config.longTasks)),
    startedShortTasks: selector(['state="STARTED"'] + excluding(config.longTasks)),
    retriedTasks: selector(['state="RETRY"'] + taskMatchers + excluding(config.pollingTasks)),
    startedTasks: selector(['state="STARTED"'] + taskMatchers + excluding(config.pollingTasks)),
    noBroadcasts: selector(excluding(config.broadcastTasks)),
    failurePercent: numberText(config.failureRatio * 100) + '%',
    retryPercent: numberText(config.retryRatio * 100) + '%',
    // While the broker blocks publishers, no events arrive, so tasks and workers seem unchanged: see CeleryBrokerBlocked.
    notBlocked: 'unless on (%(cluster)s) max by (%(cluster)s) (celery_broker_blocked) == 1' % {
      cluster: std.join(', ', config.clusterLabels),
    },
  },
  // In jsonnet 0.18, %g of 0 is an error, and %s of 0.1 is 0.10000000000000001.
  local numberText(value) =
    if !std.isNumber(value) then value else if value == std.floor(value) then '%d' % value else '%g' % value,
  local taskMatchers = if config.taskSelector == '' then [] else [config.taskSelector],
  local excluding(tasks) = if tasks == '' then [] else ['task_name!~' + std.escapeStringJson(tasks)],
  local selector(matchers) = if matchers == [] then '' else '{%s}' % std.join(',', matchers),

  local record(name, expr, labels={}) = {
    record: name % parameters,
    expr: expr % parameters,
    [if labels != {} then 'labels']: labels,
  },

  // Dashboard variables that select the value of an alert's label.
  local variables = { queue_name: 'queue', task_name: 'task', worker: 'worker' },
  // An alert about a missing series may have no job. It always has its other labels.
  local link(dashboard, extraLabels) =
    local job = 'var-job={{ . | urlquery }}';
    local queries = ['var-%s={{ $labels.%s | urlquery }}' % [variables[label], label] for label in extraLabels];
    '%s/d/celery-%s' % [config.grafanaUrl, dashboard]
    + if extraLabels == []
    then '{{ with $labels.job }}?%s{{ end }}' % job
    else '?{{ with $labels.job }}%s&{{ end }}' % job + std.join('&', queries),

  // `extraLabels` are the labels that an alert has besides those of the cluster.
  local alert(name, dashboard, expr, summary, description, extraLabels=[]) =
    local pending = config.alerts[name]['for'];
    local texts = parameters { pending: pending };
    {
      alert: name,
      expr: expr % parameters,
      'for': pending,
      labels: { severity: config.alerts[name].severity },
      annotations: {
        summary: summary % texts,
        description: description % texts,
        runbook_url: '%s#%s' % [config.runbookUrl, std.asciiLower(name)],
        dashboard_url: link(dashboard, extraLabels),
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

    // REVOKED tasks did not run. A task that is rejected without requeue is counted as REJECTED and as FAILURE.
    record('job:celery_task_failures_per_finished:ratio_rate%(window)s', |||
      sum by (%(cluster)s) (job_state:celery_tasks:rate%(window)s{state="FAILURE"})
      /
      (sum by (%(cluster)s) (job_state:celery_tasks:rate%(window)s{state=~"SUCCESS|FAILURE"}) > 0)
    |||),
    // A single failure cannot fire, even with few tasks: it stays in the window for less time than `for`.
    alert(
      'CeleryHighFailureRate',
      'tasks',
      'job:celery_task_failures_per_finished:ratio_rate%(window)s > %(failureRatio)s',
      '{{ $value | humanizePercentage }} of the Celery tasks that finished in {{ $labels.job }} in the last ' +
      '%(window)s failed',
      'The share of failed tasks has been above %(failurePercent)s for at least %(pending)s. ' +
      'Check which task and which exception have the most failures, and whether a release was deployed before.',
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
      '{{ $value | humanizePercentage }} of the Celery tasks that started in {{ $labels.job }} in the last ' +
      '%(window)s ended in a retry',
      'The share of retries has been above %(retryPercent)s for at least %(pending)s. Work is repeated and late. ' +
      'Check which task is retried most, and the services that it needs.',
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
      'Celery task {{ $labels.task_name }} took {{ $value | humanizeDuration }} on average in the last %(window)s',
      'The mean run time has been above %(meanRuntimeSeconds)s s for at least %(pending)s. ' +
      'Check the services and databases that the task uses, and the load of the workers.',
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
      'Celery task {{ $labels.task_name }} started {{ $value | humanizeDuration }} ago and has not ended',
      'The exporter has received no event for the end of this task. ' +
      'Check with `celery inspect active` whether a worker still runs it. If none does, it was lost with its worker.',
      ['task_name'],
    ),

    // A worker that is down has no celery_worker_active_tasks, so the tasks that it started remain as the difference. A
    // worker that is up and has no such series sends no heartbeats: then the number of orphans is unknown.
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
    // The average is taken before the maximum: a maximum of two exporters at each moment exceeds the average of both.
    alert(
      'CeleryTasksOrphaned',
      'tasks',
      |||
        max by (%(cluster)s) (avg_over_time(job_instance:celery_tasks_orphaned:sum[%(longWindow)s])) > %(orphans)s
        %(notBlocked)s
      |||,
      'No worker reports running {{ printf "%%.0f" $value }} of the started Celery tasks in {{ $labels.job }}',
      'The number is the average over %(longWindow)s. The worker of these tasks was killed, or their last event ' +
      'was lost. ' +
      'Check for workers that ran out of memory or were killed. With acks_late, the tasks are delivered again.',
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
      '{{ $value | humanizePercentage }} of the deliveries of Celery task {{ $labels.task_name }} in the last ' +
      '%(window)s were redeliveries',
      'Workers receive the same task again, so work is repeated. Compare the run time and the eta of the task with the ' +
      'visibility timeout (Redis) or the consumer timeout (RabbitMQ), and check whether workers restart.',
      ['task_name'],
    ),
  ],

  local periodic = [
    // A beat that moves to another host has another name, so one that is up is enough. Beats that never replied are
    // unknown (Celery before 5.7).
    alert(
      'CeleryBeatDown',
      'tasks',
      |||
        max by (%(cluster)s) (celery_beat_up) == 0
        unless max by (%(cluster)s) (celery_broker_up) == 0
        %(notBlocked)s
      |||,
      'No Celery beat has replied in {{ $labels.job }} for at least %(pending)s',
      'No periodic task is sent. ' +
      'Check whether beat runs, whether its scheduler ticks (its log), and whether it can reach the broker.',
    ),
    // Each shard receives a part of the runs of a task, so it is overdue if it is in all of them. Of two replicas, one that
    // was started after the due time does not know it. An exporter that receives no events keeps its value. A task that was
    // not sent cannot succeed, which is no second alert.
    alert(
      'CeleryTaskOverdue',
      'tasks',
      |||
        (
          time() - max by (%(cluster)s, task_name, state) (celery_task_next_expected_timestamp_seconds)
          and (
            min by (%(cluster)s, task_name, state) (celery_task_overdue{state="PENDING"}) == 1
            or
            min by (%(cluster)s, task_name, state) (celery_task_overdue{state="SUCCESS"}) == 1
            unless on (%(cluster)s, task_name)
              min by (%(cluster)s, task_name) (celery_task_overdue{state="PENDING"}) == 1
          )
        )
        unless on (%(cluster)s) max by (%(cluster)s) (celery_broker_up) == 0
        %(notBlocked)s
      |||,
      'Celery task {{ $labels.task_name }} {{ if eq $labels.state "PENDING" }}was not sent{{ else }}has not succeeded{{ end }}' +
      ', and was due {{ $value | humanizeDuration }} ago',
      '{{ if eq $labels.state "PENDING" }}Check whether Celery beat runs. If it does, its schedule lacks the task.{{ else }}' +
      'Check whether the task fails, waits in a queue, or takes longer than its grace.{{ end }}',
      ['task_name'],
    ),
  ],

  // The sum for each queue, in which replicas that count the same tasks count once.
  local ofQueue(expr) = std.strReplace(|||
    sum by (%(cluster)s, queue_name) (
      max by (%(cluster)s, queue_name, part) (
        sum by (%(exporter)s, queue_name) (EXPR)
        * on (%(exporter)s) group_left (part) job_instance_part:celery_exporter:group
      )
    )
  |||, 'EXPR', expr),
  local inQueueAnd(states) =
    'max by (%(cluster)s, queue_name) (celery_queue_length)\n+\n(\n'
    + ofQueue('celery_tasks_in_flight{state=~"' + states + '"}')
    + 'or\n0 * max by (%(cluster)s, queue_name) (celery_queue_length)\n)\n',

  local queues = [
    alert(
      'CeleryHighQueueDepth',
      'overview',
      'max by (%(cluster)s, queue_name) (celery_queue_length) > %(queueDepth)s',
      '{{ printf "%%.0f" $value }} messages wait in Celery queue {{ $labels.queue_name }}',
      'The queue has held more than %(queueDepth)s messages for at least %(pending)s. ' +
      'Check how long messages wait, whether the queue still grows, and whether its workers are up.',
      ['queue_name'],
    ),

    // 0 while the queue is consumed, too. Absent while the number of consumers is unknown.
    record('job_queue_name:celery_queue_unconsumed_messages:max', |||
      max by (%(cluster)s, queue_name) (celery_queue_length)
      *
      (max by (%(cluster)s, queue_name) (celery_queue_consumers) == bool 0)
    |||),
    // Some queues hold messages by design. One that has held all of its messages for a day is such a queue; one that was
    // not measured a day ago is not. A step of 5 minutes keeps the query small: 288 values for each queue.
    alert(
      'CeleryQueueWithoutConsumers',
      'overview',
      |||
        job_queue_name:celery_queue_unconsumed_messages:max > 0
        unless (
          job_queue_name:celery_queue_unconsumed_messages:max
          <= min_over_time(job_queue_name:celery_queue_unconsumed_messages:max[1d:5m])
          and last_over_time(job_queue_name:celery_queue_unconsumed_messages:max[1h] offset 1d)
        )
      |||,
      '{{ printf "%%.0f" $value }} messages wait in Celery queue {{ $labels.queue_name }}, which no worker consumes',
      'They arrived within the last day, and wait until a worker consumes the queue. ' +
      'Check whether the worker that consumed it is down, the name of the queue in task_routes, and the option -Q of the ' +
      'workers.',
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
      '5%% of the tasks in Celery queue {{ $labels.queue_name }} waited {{ $value | humanizeDuration }} or ' +
      'longer before they started',
      'This 95th percentile over %(window)s has been above %(queueWaitSeconds)s s for at least %(pending)s. ' +
      'Check whether the pools of its workers are full, and whether long tasks share the queue with short ones.',
      ['queue_name'],
    ),

    // The age of a message with an eta counts from the eta, so it can be negative.
    record('job_queue_name:celery_queue_oldest_age_seconds:max', |||
      time() - min by (%(cluster)s, queue_name) (celery_queue_oldest_timestamp_seconds)
    |||),
    alert(
      'CeleryOldestMessageWaiting',
      'overview',
      'job_queue_name:celery_queue_oldest_age_seconds:max > %(oldestWaitingSeconds)s',
      'The message at the head of Celery queue {{ $labels.queue_name }} has waited for {{ $value | humanizeDuration }}',
      'It has waited longer than %(oldestWaitingSeconds)s s for at least %(pending)s. ' +
      'Check whether a worker consumes the queue, and whether its workers are busy or prefer a higher priority.',
      ['queue_name'],
    ),

    // Which exporters count the same tasks: replicas on a broker without durable event queues, which have no shard or the same
    // one. Others count tasks of their own: shards, and exporters on a durable queue. A replaced pod stays for the window.
    record('job_instance_part:celery_exporter:group', |||
      group by (%(exporter)s, part) (
        label_replace(last_over_time(celery_exporter_active[%(window)s]), "part", "$1", "instance", "(.*)")
        or on (%(exporter)s)
        label_replace(celery_exporter_build_info, "part", "$1", "shard", "(.*)")
        or on (%(exporter)s)
        label_replace(last_over_time(celery_exporter_build_info[%(window)s]), "part", "$1", "shard", "(.*)")
      )
    |||),
    // For autoscalers and capacity. Sent and ended are attempts, so they include retries. Finished are tasks: the retry of a
    // task is a new message. Sent is absent without task-sent events. An attempt ends once, however it ends; REJECTED is left
    // out, since such a task is counted as FAILURE, too.
    record('job_queue_name:celery_tasks_sent:rate%(window)s', ofQueue('rate(celery_tasks_total{state="PENDING"}[%(window)s])')),
    record(
      'job_queue_name:celery_tasks_received:rate%(window)s',
      ofQueue('rate(celery_tasks_total{state="RECEIVED"}[%(window)s])'),
    ),
    record(
      'job_queue_name:celery_tasks_ended:rate%(window)s',
      ofQueue('rate(celery_tasks_total{state=~"SUCCESS|FAILURE|RETRY|REVOKED"}[%(window)s])'),
    ),
    record(
      'job_queue_name:celery_tasks_finished:rate%(window)s',
      ofQueue('rate(celery_tasks_total{state=~"SUCCESS|FAILURE|REVOKED"}[%(window)s])'),
    ),
    // Messages in the queue, and tasks that workers have reserved: those that wait. With those that run, it is what the
    // slots are for. A worker that consumes several queues counts in each. The ratio is absent without slots: scale from zero
    // by the number of tasks.
    record('job_queue_name:celery_queue_waiting_tasks:sum', inQueueAnd('RECEIVED')),
    record('job_queue_name:celery_queue_tasks:sum', inQueueAnd('RECEIVED|STARTED')),
    record('job_queue_name:celery_queue_tasks_per_slot:ratio', |||
      job_queue_name:celery_queue_tasks:sum
      / on (%(cluster)s, queue_name)
      (max by (%(cluster)s, queue_name) (celery_queue_worker_processes) > 0)
    |||),
    // Until what waits now has been taken, and finished at the rate of now. Absent if no task finishes.
    record('job_queue_name:celery_queue_drain_seconds:ratio', |||
      job_queue_name:celery_queue_waiting_tasks:sum
      / on (%(cluster)s, queue_name)
      (job_queue_name:celery_tasks_finished:rate%(window)s > 0)
    |||),
  ],

  local workers = [
    // Without an event subscription, the state of workers is unknown: see CeleryExporterBlind. The alert requires messages
    // in a queue or unacknowledged messages. If no queue is measured, it assumes them.
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
      'No Celery worker has been online in {{ $labels.job }} for at least %(pending)s',
      'No task is executed. ' +
      'Check whether workers run or crash at start, and whether they can reach the broker that the exporter uses.',
    ),

    // A worker that stops in order (a rollout, scaling down) sends worker-offline, so its last event is later than the
    // last sample with celery_worker_up 1. A worker that dies stays up until --worker-timeout has passed, so its last event
    // is earlier. For a worker that was not up within the window, the difference is unknown.
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
      'Celery worker {{ $labels.worker }} has been down for at least %(pending)s',
      'Its events stopped without a worker-offline event. The tasks that it was running may be lost, or ' +
      'delivered again. ' +
      'Check its process, its log, its host and `dmesg` (out of memory).',
      ['worker'],
    ),

    // A pool with --autoscale is full at its maximum, any other pool at its current size.
    record('job_worker:celery_worker_active_tasks_per_pool_size:ratio', |||
      max by (%(cluster)s, worker) (celery_worker_active_tasks)
      /
      (max by (%(cluster)s, worker) (celery_worker_pool_max or celery_worker_pool_size) > 0)
    |||),
    alert(
      'CeleryWorkerPoolFull',
      'workers',
      'job_worker:celery_worker_active_tasks_per_pool_size:ratio >= 1 %(notBlocked)s',
      'Celery worker {{ $labels.worker }} has used its whole pool for at least %(pending)s',
      'Its active tasks are {{ $value | humanizePercentage }} of its pool size. This is good use of the machine ' +
      'while no messages wait. ' +
      'If messages wait, add workers, and check for tasks that hang.',
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
      'Celery worker {{ $labels.worker }} has run tasks without task events for at least %(pending)s',
      'The exporter does not count its tasks, and no alert on tasks can fire for it. ' +
      'Start the worker with -E, set worker_send_task_events, or start the exporter with --enable-events.',
      ['worker'],
    ),
  ],

  local exporter = [
    // Every worker sends a heartbeat every few seconds. A long time without events therefore means a broken subscription,
    // or one to the wrong broker.
    record('job_instance:celery_exporter_silent:max', |||
      max by (%(exporter)s) (celery_workers_online) > 0
      unless
      time() - max by (%(exporter)s) (celery_exporter_last_event_timestamp_seconds) < %(silenceSeconds)s
      unless
      max by (%(exporter)s) (celery_broker_blocked) == 1
    |||),
    // Without --shard, the label is absent.
    record('job_instance_shard:celery_exporter_receiving:group', |||
      group by (%(exporter)s, shard) (celery_exporter_build_info)
      and on (%(exporter)s) celery_broker_up == 1
      unless on (%(exporter)s) celery_exporter_active == 0
      unless on (%(exporter)s) job_instance:celery_exporter_silent:max
    |||),
    // Exporters, also those that are down, whose events an exporter receives: the active one on their durable event queue;
    // without such queues, one that has no shard, as they do, or the same.
    record('job_instance:celery_exporter_replaced:group', |||
      group by (%(exporter)s) (
        last_over_time(celery_exporter_active[%(exporterKnown)s])
        and on (%(cluster)s, event_queue) celery_exporter_active == 1
        or
        last_over_time(celery_exporter_build_info[%(exporterKnown)s])
        unless on (%(exporter)s) last_over_time(celery_exporter_active[%(exporterKnown)s])
        and on (%(cluster)s, shard)
          (job_instance_shard:celery_exporter_receiving:group unless on (%(exporter)s) celery_exporter_active)
      )
    |||),

    // In this order: a target that was an exporter does not answer, and no other one replaces it; the exporters of a cluster
    // are no longer targets, and no other target replaces them; there is no exporter, and no target that was one.
    alert(
      'CeleryExporterDown',
      'exporter',
      |||
        (
          up == 0
          and on (%(exporter)s) last_over_time(celery_exporter_build_info[%(exporterKnown)s])
          unless on (%(exporter)s) job_instance:celery_exporter_replaced:group
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
      '{{ if $labels.instance }}Celery exporter {{ $labels.instance }} has not answered for at least %(pending)s' +
      '{{ else if $labels.job }}No Celery exporter is among the targets of job {{ $labels.job }}' +
      '{{ else }}No target of Prometheus is a Celery exporter that answers{{ end }}',
      'While no exporter of a cluster answers, no other alert on that cluster can fire. ' +
      'Check the process and the log of the exporter, its address, and the scrape configuration.',
    ),

    alert(
      'CeleryStandbyDown',
      'exporter',
      |||
        (
          up == 0
          and on (%(exporter)s) last_over_time(celery_exporter_build_info[%(exporterKnown)s])
          or
          max by (%(exporter)s) (celery_broker_up) == 0
          or
          job_instance:celery_exporter_silent:max unless on (%(exporter)s) celery_exporter_active
        )
        and on (%(exporter)s) job_instance:celery_exporter_replaced:group
      |||,
      'Celery exporter {{ $labels.instance }} could not take over for at least %(pending)s',
      'It does not answer, its event subscription is not open, or it receives no events. Another exporter receives them. ' +
      'Check the process and the log of this one before the other one fails, too.',
    ),

    record('job_instance:celery_exporter_blind:max', |||
      max by (%(exporter)s) (celery_broker_up) == 0
      unless on (%(exporter)s) job_instance:celery_exporter_replaced:group
      or
      job_instance:celery_exporter_silent:max
      unless on (%(exporter)s) (job_instance:celery_exporter_replaced:group unless on (%(exporter)s) celery_exporter_active)
    |||),
    // With the label shard, other shards receive events. Then the alert mutes no other one.
    alert(
      'CeleryExporterBlind',
      'exporter',
      |||
        job_instance:celery_exporter_blind:max
        unless on (%(cluster)s) job_instance_shard:celery_exporter_receiving:group
        or on (%(exporter)s)
        job_instance:celery_exporter_blind:max
        * on (%(exporter)s) group_left (shard) group by (%(exporter)s, shard) (celery_exporter_build_info)
      |||,
      'Celery exporter {{ $labels.instance }} has received no events for at least %(pending)s',
      'Its event subscription is not open, or workers are up and no event has arrived for %(silenceSeconds)s s. ' +
      'Its counters do not change. Check the broker, the log of the exporter, that workers use the same broker, ' +
      'and with --event-queue that a relay runs.',
    ),

    alert(
      'CeleryBrokerBlocked',
      'exporter',
      'max by (%(cluster)s) (celery_broker_blocked) == 1',
      'RabbitMQ has blocked publishers in {{ $labels.job }} for at least %(pending)s',
      'It has a memory or disk alarm. No task, event or heartbeat can be sent, so the counters of the exporter ' +
      'do not change. ' +
      'Check `rabbitmq-diagnostics alarms`, then free memory or disk space.',
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
      '{{ $value | humanizePercentage }} of the tasks that Celery workers in {{ $labels.job }} processed in the ' +
      'last %(longWindow)s are not counted',
      'The exporter did not receive their events, so rates are too low by this share. ' +
      'Check whether the exporter or the broker restarted, and whether the exporter reaches its CPU limit.',
    ),

    // While a job fails, the alerts on what it measures are silent, or use old values. It fails while the broker is down, too:
    // see CeleryExporterBlind.
    alert(
      'CeleryCollectorFailing',
      'exporter',
      |||
        max by (%(exporter)s, collector) (celery_exporter_collector_success) == 0
        unless on (%(exporter)s)
          celery_broker_up == 0
      |||,
      'The job {{ $labels.collector }} of Celery exporter {{ $labels.instance }} has failed for at least %(pending)s',
      'What it measures is unknown: lengths of queues (queues), pools and queues of workers (workers), a memory or disk alarm ' +
      '(blocked). With state, a restart loses counts. ' +
      'Check the log of the exporter, which has the error, and run celery-exporter doctor.',
    ),

    alert(
      'CelerySeriesOverflow',
      'exporter',
      'max by (%(cluster)s) (increase(celery_exporter_series_overflow_total[%(longWindow)s])) > 0',
      'The Celery exporter of {{ $labels.job }} has reached --max-series',
      'Counts under the name other in the last %(longWindow)s: {{ printf "%%.0f" $value }}. Sums are correct, ' +
      'but names are lost. ' +
      'Check for names of tasks, queues or exceptions that are generated at run time.',
    ),

    // A sink that has never taken a record has no time of a last success.
    alert(
      'CelerySinkFailing',
      'exporter',
      |||
        max by (%(exporter)s, sink) (celery_exporter_sink_buffered_records) > 0
        unless
        time() - max by (%(exporter)s, sink) (celery_exporter_sink_last_success_timestamp_seconds) < %(sinkFailingSeconds)s
      |||,
      'The sink {{ $labels.sink }} of Celery exporter {{ $labels.instance }} has taken no record for at least %(pending)s',
      'Records that wait: {{ $value }}. When the buffer is full, the oldest are dropped. Metrics are not affected. ' +
      'Check the receiver, and the log of the exporter, which has its answer.',
    ),

    alert(
      'CelerySinkRecordsLost',
      'exporter',
      |||
        sum by (%(exporter)s, sink)
          (increase(celery_exporter_sink_records_total{outcome!~"delivered|incomplete"}[%(longWindow)s]))
        > 0
      |||,
      'Celery exporter {{ $labels.instance }} loses records of its sink {{ $labels.sink }}',
      'Records that were not delivered in the last %(longWindow)s: {{ printf "%%.0f" $value }}. Metrics are not affected. ' +
      'celery_exporter_sink_records_total has the reason: check whether the receiver keeps up, and what it answers.',
    ),

    // The value is the number of dropped tasks. A file that could not be used yet has no time of a last success.
    alert(
      'CeleryHistoryFailing',
      'exporter',
      |||
        sum by (%(exporter)s) (increase(celery_exporter_history_dropped_total[%(longWindow)s])) > 0
        or
        (
          sum by (%(exporter)s) (increase(celery_exporter_history_dropped_total[%(longWindow)s]))
          unless
          time() - max by (%(exporter)s) (celery_exporter_history_last_success_timestamp_seconds) < %(historyFailingSeconds)s
        )
      |||,
      'Celery exporter {{ $labels.instance }} does not write all tasks to its history file',
      'Tasks that were dropped in the last %(longWindow)s: {{ printf "%%.0f" $value }}. While the file cannot be used, the ' +
      'others wait in memory. Metrics are not affected. ' +
      'Check the log of the exporter, which has the error, and the disk of --history-file.',
    ),
  ],
} + (import 'objectives.libsonnet')
