/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_CONDITION_H
#define DAEMON_CONDITION_H

/* How a sound device is, judged from what is seen of it, and what is to be done about that. No clock, thread or process is in
 * here: who calls says what time it is. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum condition {
    CONDITION_OK,
    CONDITION_SILENT,     /* it runs, and gives nothing but silence              */
    CONDITION_STALLED,    /* open, and it doesn't call                           */
    CONDITION_LOST,       /* not there: it is tried again and again              */
    CONDITION_RECOVERING, /* it calls again, but not for long enough to be sure  */
    CONDITIONS
};
extern const char *const condition_names[CONDITIONS]; /* "ok" ... */

/* ---- The device as a whole. ---- */

enum stage_of_opening { OPENING_NONE, OPENING_BEGUN, OPENING_DONE, OPENING_FAILED };

/* What is seen at `now` (ns). */
struct sight {
    int64_t now;
    int64_t asleep;  /* clock_asleep() */
    enum stage_of_opening opening;
    uint64_t calls;  /* of the device so far */
    bool nudged;     /* some device came: worth a try at once */
};

enum order { ORDER_NONE, ORDER_OPEN, ORDER_CLOSE };

struct tending {
    enum condition condition;
    int64_t since;    /* of the condition, ns */
    const char *why;  /* it was closed; NULL: whoever opened it knows */
    /* private from here */
    int64_t asleep, began; /* began: the opening, or the last close */
    int64_t called, flowing; /* the last new call; since when calls come one after the other, 0: they don't */
    double usual_ns;         /* the longest pause between calls, lately */
    uint64_t calls;
    int64_t wait, most; /* before the next try */
};

/* A device that was opened by somebody just now. most: the longest wait between two tries, ns, four times that after a minute:
 * long where something tells of devices that come. */
void tending_init(struct tending *tending, const struct sight *sight, int64_t most);

/* Look; gives what is to be done now. After ORDER_OPEN `opening` is BEGUN in the next sight, after ORDER_CLOSE NONE. */
enum order tending_turn(struct tending *tending, const struct sight *sight);

/* ---- What one channel gives. ---- */

struct ear {
    float floor;       /* what isn't beyond it is silence */
    double patience;   /* s of it before it is told; 0: never */
    double rate;
    bool silent;
    double silence_s;  /* so far */
    /* private from here */
    double loud_s, sum, summed;
};

struct heard {
    size_t clipped; /* samples */
    size_t offset;  /* samples of a second whose mean is far from 0 */
};

void ear_init(struct ear *ear, double floor_db, double patience_s, double rate);
struct heard ear_hear(struct ear *ear, const float *samples, size_t n);

#endif
