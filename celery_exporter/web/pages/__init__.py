"""The pages as HTML. They are complete without JavaScript; with it, they refresh themselves.

They load nothing from other servers. Texts from events, workers and requests are escaped.
"""
