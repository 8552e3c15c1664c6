"How the benchmark scripts of this folder measure time."

import statistics
import time


def seconds(run, repeats):
    "Median, smallest and largest CPU seconds of `repeats` runs; several come after one that is not counted."
    if repeats > 1:
        run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times), min(times), max(times)
