-- Takes 0001_init back: every event, delivery and inbox entry is gone with it.
DROP TABLE ie_meta;
DROP TABLE ie_inbox;
DROP TABLE ie_delivery;
DROP TABLE ie_cursor;
DROP TABLE ie_event;
