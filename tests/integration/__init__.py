"""Black-box tests: the exporter as a process, with real brokers, workers and Prometheus servers."""
