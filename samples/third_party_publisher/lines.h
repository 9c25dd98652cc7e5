/* lines: prints one line per event, to stderr or into a file. Written outside libie. */
#ifndef LINES_H
#define LINES_H

#include <ie/publisher.h>

extern const ie_publisher_ops LINES; /* "lines:stderr" or "lines:/path/to/file" */

#endif
