#!/usr/bin/env python3
"""An order and its event in one transaction, from Python: ie_event is a table like any other."""
import json
import sqlite3
import sys

db = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
with db:  # commits at its end, rolls back on an exception
    db.execute("INSERT INTO orders(customer, item) VALUES (?, ?)", ("grace", "cup"))
    (event_id,) = db.execute(
        "INSERT INTO ie_event(topic, key, data) VALUES (?, ?, ?) RETURNING id",
        ("orders.placed", "grace", json.dumps({"item": "cup"}))).fetchone()
print(event_id)
