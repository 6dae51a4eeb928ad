"Metrics, intervals, paired tests: did it get better?."
