/* SPDX-License-Identifier: MIT */
#include "dsp/wall.h"

#include <stddef.h>

#include "dsp/clock.h"

static const int64_t exact = 10000;

/* The latest look before `ns`, or the oldest there is. */
static const struct wall_look *find_look(const struct wall *wall, int64_t ns)
{
    uint64_t oldest = wall->n > WALL_LOOKS ? wall->n - WALL_LOOKS : 0, i = wall->n - 1;
    while (i > oldest && wall->looks[i % WALL_LOOKS].from > ns) {
        i--;
    }
    return &wall->looks[i % WALL_LOOKS];
}

static int64_t offset_at(const struct wall_look *look, int64_t ns)
{
    int64_t shrunk = look->offset - (ns > look->from ? (ns - look->from) / 2 : 0);
    return shrunk > look->goal ? shrunk : look->goal;
}

bool wall_look(struct wall *wall)
{
    int64_t now = clock_now(), goal = clock_utc_offset();
    const struct wall_look *last = wall->n > 0 ? find_look(wall, now) : NULL;
    int64_t offset = last ? offset_at(last, now) : goal;
    bool borne = offset - goal <= WALL_BEARABLE;
    if (!last || goal - last->goal >= exact || last->goal - goal >= exact) {
        wall->looks[wall->n++ % WALL_LOOKS] = (struct wall_look){now, borne && offset > goal ? offset : goal, goal};
    }
    return borne;
}

int64_t wall_utc(const struct wall *wall, int64_t ns)
{
    return ns + offset_at(find_look(wall, ns), ns);
}
