/* flights.h - the steps under way: plans that the ranks have, oldest first, and the results they come back in. One thread: the
 * engine's, or that of offline.c. Nothing is allocated after flights_init. */
#ifndef SLUICE_FLIGHTS_H
#define SLUICE_FLIGHTS_H

#include <sluice/rank.h>

struct flight {
    const struct step_plan *plan;
    int64_t began_ns;                  /* when the ranks got it */
    int64_t host_ns;                   /* how long they had had nothing to do, though there was work */
    double expected_ms;                /* 0: not known */
    /* once it has landed */
    const struct step_result *result;
    int64_t landed_ns;
    double alone_ms;                   /* what it took alone: in a pipeline it also waited for the one before */
};

struct flights {
    struct ranks *ranks;
    struct flight *at;                 /* [num_slots] */
    struct step_result *results;       /* [num_slots], by micro batch */
    int32_t num, num_slots;
    int64_t landed_ns;                 /* when the last one landed; 0 = there was nothing to do since */
};

/* Room for as many plans as the ranks take at once, each with max_rows rows of results. Negative: ERR_NO_MEMORY. Whoever calls it
 * calls flights_release, after a failure too. */
int  flights_init(struct flights *flights, struct ranks *ranks, int32_t num_slots, int32_t max_rows);
void flights_release(struct flights *flights);
/* Gives the plan of `flight` to the ranks; the others of its fields above come back when it lands. Not when num == num_slots.
 * Negative: a rank's error. */
int  flights_launch(struct flights *flights, const struct flight *flight);
/* Waits for the oldest. Negative: a rank's error; *landed then says which plan it was. */
int  flights_land(struct flights *flights, struct flight *landed);
/* How long the oldest has run by itself. */
double flights_alone_ms(const struct flights *flights, int64_t now_ns);

#endif
