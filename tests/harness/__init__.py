"""Real servers, real workers and our own program, each as a process of its own.

Everything listens on 127.0.0.1, on a port that was free, in a folder that pytest throws away, and
is ended by its own process id. Nobody here sleeps for a fixed time: ``waiting.eventually`` does the
waiting, and says what it saw last when time is up.
"""
