"""`make bench`: the exporter beside a floor below it and its peers, in one run, as one table and a chart."""
