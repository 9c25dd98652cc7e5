/* Ids for a given moment: what ie_id_new() does with the system's clock. Private to the library. */
#ifndef IE_ID_H
#define IE_ID_H

#include <ie/event.h>

/* As ie_id_new(); wall_ms may jump either way, the ids of the process ascend all the same. */
void ie__id_new_at(char out[IE_ID_SIZE], int64_t wall_ms);

#endif
