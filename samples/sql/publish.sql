-- An order and its event in one transaction, from the sqlite3 shell: sqlite3 hello.db < publish.sql
.bail on
.timeout 5000
BEGIN IMMEDIATE;
INSERT INTO orders(customer, item) VALUES ('alan', 'pot');
INSERT INTO ie_event(topic, key, data)
    VALUES ('orders.placed', 'alan', '{"item":"pot"}') RETURNING id;
COMMIT;
