#include "flights.h"

#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "base/clock.h"

int flights_init(struct flights *flights, struct ranks *ranks, int32_t num_slots, int32_t max_rows)
{
    *flights = (struct flights){ .ranks = ranks, .num_slots = num_slots };
    flights->at = calloc((size_t)num_slots, sizeof *flights->at);
    flights->results = calloc((size_t)num_slots, sizeof *flights->results);
    if (!flights->at || !flights->results) return ERR_NO_MEMORY;
    for (int32_t i = 0; i < num_slots; i++) {
        flights->results[i].rows = calloc((size_t)max_rows, sizeof *flights->results[i].rows);
        if (!flights->results[i].rows) return ERR_NO_MEMORY;
    }
    return 0;
}

void flights_release(struct flights *flights)
{
    for (int32_t i = 0; flights->results && i < flights->num_slots; i++) free(flights->results[i].rows);
    free(flights->results);
    free(flights->at);
    *flights = (struct flights){ 0 };
}

int flights_launch(struct flights *flights, const struct flight *flight)
{
    BUG_ON(flights->num == flights->num_slots);
    flights->at[flights->num++] = *flight;
    return ranks_submit(flights->ranks, flight->plan, &flights->results[flight->plan->micro_batch]);
}

double flights_alone_ms(const struct flights *flights, int64_t now_ns)
{
    int64_t began_ns = flights->at[0].began_ns;

    return (double)(now_ns - (began_ns > flights->landed_ns ? began_ns : flights->landed_ns)) / 1e6;
}

int flights_land(struct flights *flights, struct flight *landed)
{
    struct step_result *result = NULL;
    int rc = ranks_wait(flights->ranks, &result);
    int64_t now_ns = clock_now_ns();

    flights->at[0].landed_ns = now_ns;
    flights->at[0].alone_ms = flights_alone_ms(flights, now_ns);
    *landed = flights->at[0];
    memmove(flights->at, flights->at + 1, (size_t)--flights->num * sizeof *flights->at);
    if (rc < 0 || result->rc < 0) return rc < 0 ? rc : result->rc;
    BUG_ON(result->step != landed->plan->step);
    landed->result = result;
    flights->landed_ns = now_ns;
    return 0;
}
