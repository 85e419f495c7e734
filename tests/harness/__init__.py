"""Servers, workers, clients and the exporter, each in a process of its own.

Every process listens on 127.0.0.1, on a free port, with files in a folder that pytest removes. Tests end a
process by its process id. No test sleeps for a fixed time: `waiting.eventually` waits for a condition, and
its error shows the last state.
"""
