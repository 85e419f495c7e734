"""Black-box tests: our program as a process, on real brokers, with real workers and a real Prometheus."""
