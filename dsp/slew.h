/* SPDX-License-Identifier: MIT */
#ifndef DSP_SLEW_H
#define DSP_SLEW_H

/* Holds the delay between two clocks: of what captures, and of what plays. The ratio at which samples are made for the player
 * follows both clocks' fitted rates (dsp/clock.h) and, slowly, what brings the delay back to where it was when both were known:
 * it never creeps, and what waits between the two neither grows nor runs dry. One owner; nothing allocated. */

#include <stdbool.h>

/* What is known before a piece of sound is passed on. */
struct slew_sight {
    double delay_s;                /* from its first sample's capture to when that will be played, by the fitted clocks */
    double source_ppm, player_ppm; /* how much faster than it says each runs                                            */
    double seconds;                /* the piece's length                                                                */
};

struct slew {
    double ratio;  /* of the player's samples to what the nominal rates make of the source's, near 1 */
    bool anchored;
    double delay_s; /* to be held; once anchored */
    /* private from here */
    double age, sum_s;
};

void slew_init(struct slew *slew);
/* Gives the ratio for this piece. */
double slew_turn(struct slew *slew, const struct slew_sight *sight);
/* The player ran dry, or begins: the delay is another one from now on. The ratio stays. */
void slew_release(struct slew *slew);

#endif
