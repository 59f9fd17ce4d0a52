/* devices.c - how many GPUs a process started here may use, without a driver library: the gateway links none. */
#include <sluice/parallel.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_GPUS = 64 };

/* Items of a list like "0,2" or "GPU-8f3a,MIG-11"; the list ends at the first one that CUDA would not take. */
static int count_listed(const char *list)
{
    int n = 0;
    while (*list && *list != '-' && *list != ',' && n < MAX_GPUS) {
        n++;
        while (*list && *list != ',') list++;
        if (*list == ',') list++;
    }
    return n;
}

int gpus_visible(void)
{
    const char *listed = getenv("CUDA_VISIBLE_DEVICES");
    char path[32];
    int n = 0;
    if (listed) return count_listed(listed);
    for (int i = 0; i < MAX_GPUS; i++) {
        snprintf(path, sizeof(path), "/dev/nvidia%d", i);
        n += access(path, F_OK) == 0;
    }
    return n;
}
