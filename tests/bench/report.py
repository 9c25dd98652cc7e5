#!/usr/bin/env python3
"""Medians of what the benchmark programs printed, their ratios, and whether each bar is met.

Input: lines "<repetition> <figure> <variant> <value>". A ratio is taken within each repetition,
where both sides met the same noise, and the median of those ratios is judged.
"""
import argparse
import json
import statistics
import sys

# name, figure, ours, floor (None: none), bar ("<=" or ">=", value, of what; None: shown only).
# Of "ratio" (ours / floor), "ours", or "growth" (ours - floor).
ROWS = [
    ("ie_publish() in a transaction, CPU ns", "insert_cpu_ns", "ours", "raw", ("<=", 1.5, "ratio")),
    ("UPDATE + event, NORMAL, per s", "transaction_normal_per_s", "ours", "raw", (">=", 0.9, "ratio")),
    ("  its p50, us", "transaction_normal_p50_us", "ours", "raw", None),
    ("  its p99, us", "transaction_normal_p99_us", "ours", "raw", None),
    ("UPDATE + event, FULL, per s", "transaction_full_per_s", "ours", "raw", (">=", 0.95, "ratio")),
    ("  its p50, us", "transaction_full_p50_us", "ours", "raw", None),
    ("  its p99, us", "transaction_full_p99_us", "ours", "raw", None),
    ("bytes written per event", "exact_event_bytes", "ours", "raw", ("<=", 10100, "ours")),
    ("bytes written per published event", "exact_published_bytes", "ours", "raw", ("<=", 60, "ours")),
    ("drain to memory:, per s", "drain_per_s", "ours", "raw", (">=", 0.5, "ratio")),
    ("  its CPU, ns per event", "drain_cpu_ns", "ours", "raw", None),
    ("drain of 5 M to memory:, per s", "drain_5m_per_s", "ours", "raw", (">=", 0.5, "ratio")),
    ("worker's memory, 1 M against 1,000 pending, KiB", "worker_memory_kib", "1m", "1k", ("<=", 4096, "growth")),
    ("worker's memory, 5 M against 1,000 pending, KiB", "worker_memory_kib", "5m", "1k", ("<=", 4096, "growth")),
    ("drain to socket://, handlers acknowledge, per s", "bus_drain_per_s", "ack", None, (">=", 200000, "ours")),
    ("drain to socket://, the bus acknowledges, per s", "bus_drain_per_s", "live", None, (">=", 200000, "ours")),
    ("  CPU of the worker, ns per event", "bus_drain_worker_cpu_ns", "ack", None, None),
    ("  CPU of the bus, ns per event", "bus_drain_bus_cpu_ns", "ack", None, None),
    ("  CPU of the subscriber, ns per event", "bus_drain_subscriber_cpu_ns", "ack", None, None),
    ("enqueue against a state column, per s", "transaction_normal_per_s", "ours", "state", (">=", 1.2, "ratio")),
    ("drain against a state column, per s", "drain_per_s", "ours", "state", (">=", 4.0, "ratio")),
    ("commit to handler elsewhere, p50 us", "latency_p50_us", "ours", None, ("<=", 300, "ours")),
    ("commit to handler elsewhere, p99 us", "latency_p99_us", "ours", None, ("<=", 3000, "ours")),
    ("idle worker, percent of a core", "idle_percent", "ours", None, ("<=", 0.5, "ours")),
    ("host's rate with a worker, per s", "host_per_s", "worker", "alone", (">=", 0.9, "ratio")),
    ("  its p50, us", "host_p50_us", "worker", "alone", None),
    ("  its p99, us", "host_p99_us", "worker", "alone", ("<=", 2.0, "ratio")),
    ("  CPU of its thread, us per transaction", "host_cpu_us", "worker", "alone", None),
    ("  waits for the write lock, per 1000", "host_waits_per_1000", "worker", "relay", None),
    ("  rate beside a relay by hand instead, per s", "host_per_s", "relay", "alone", None),
    ("  p99 beside a relay by hand instead, us", "host_p99_us", "relay", "alone", None),
    ("  bytes per event, both sides", "host_bytes", "worker", "alone", None),
    ("  events that the worker was behind", "host_lag_events", "worker", None, None),
    ("rows kept while publishing, 2nd half against 1st", "growth_rows", "second-half", "first-half", ("<=", 1.5, "ratio")),
    ("  events per s meanwhile", "growth_per_s", "ours", None, None),
    ("cleaning against a raw DELETE in chunks, per s", "clean_per_s", "ours", "raw", None),
    ("  its CPU, ns per event", "clean_cpu_ns", "ours", "raw", None),
    ("  its bytes per event", "clean_bytes", "ours", "raw", None),
]

# The same floor at two sizes: the rate must not depend on how much waits.
FLAT = ("rate at 5 M against 1 M pending", ("drain_5m_per_s", "ours"), ("drain_per_s", "ours"), (">=", 0.9))


def read(path):
    values = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            rep, figure, variant, value = line.split()
            values.setdefault((figure, variant), {}).setdefault(int(rep), []).append(float(value))
    return {key: {rep: statistics.median(v) for rep, v in reps.items()} for key, reps in values.items()}


def number(value):
    if value is None:
        return "-"
    if abs(value) >= 100000:
        return f"{value / 1000:,.0f} k"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def verdict(bar, ours, floor, ratio):
    if bar is None:
        return None, ""
    sign, limit, of = bar
    value = {"ratio": ratio, "ours": ours, "growth": ours - (floor or 0)}[of]
    is_met = value <= limit if sign == "<=" else value >= limit
    if is_met:
        return True, "met"
    by = (value / limit - 1) if sign == "<=" else (1 - value / limit)
    return False, f"missed by {100 * by:.0f} %"


def table_rows(values):
    for name, figure, ours, floor, bar in ROWS:
        mine = values.get((figure, ours))
        if not mine:
            continue
        theirs = values.get((figure, floor)) if floor else None
        ratios = [mine[r] / theirs[r] for r in mine if theirs and r in theirs and theirs[r] != 0]
        if bar and bar[2] != "ours" and not ratios:
            continue
        yield {
            "name": name, "figure": figure, "variant": ours, "against": floor,
            "ours": statistics.median(mine.values()),
            "floor": statistics.median(theirs.values()) if theirs else None,
            "ratio": statistics.median(ratios) if ratios else None,
            "ratio_range": [min(ratios), max(ratios)] if ratios else None,
            "bar": bar, "repetitions": len(mine),
        }
    name, large, small, (sign, limit) = FLAT
    if large in values and small in values:
        mine = statistics.median(values[large].values())
        theirs = statistics.median(values[small].values())
        yield {"name": name, "figure": large[0], "variant": large[1], "against": small[0], "ours": mine,
               "floor": theirs, "ratio": mine / theirs, "ratio_range": None,
               "bar": (sign, limit, "ratio"), "repetitions": 1}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lines")
    parser.add_argument("--reps", type=int, default=1)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = list(table_rows(read(options.lines)))
    if not rows:
        sys.exit("report.py: no figures")
    print(f"{'figure':<50} {'ours':>9} {'floor':>9} {'ratio':>6} {'range':>11} {'bar':>13}")
    met = missed = 0
    for row in rows:
        row["met"], words = verdict(row["bar"], row["ours"], row["floor"], row["ratio"])
        met += row["met"] is True
        missed += row["met"] is False
        bar = row["bar"]
        unit = {"ratio": "x", "growth": " more", "ours": ""}[bar[2]] if bar else ""
        limit = f"{bar[0]} {number(bar[1])}{unit}" if bar else ""
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else "-"
        spread = "{:.2f}-{:.2f}".format(*row["ratio_range"]) if row["ratio_range"] else ""
        print(f"{row['name']:<50} {number(row['ours']):>9} {number(row['floor']):>9} {ratio:>6} "
              f"{spread:>11} {limit:>13} {words}".rstrip())
    print(f"\n{met} met, {missed} missed; medians of {options.reps} repetitions; "
          f"other programs used {options.others} % of the machine meanwhile")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump({"repetitions": options.reps, "others_percent": options.others, "rows": rows}, out, indent=1)
            out.write("\n")


if __name__ == "__main__":
    main()
