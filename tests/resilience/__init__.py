"""Tests of faults of networks and brokers, and of the availability of the exporter during them."""
