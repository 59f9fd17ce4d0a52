/* devices.c - how many GPUs a process started here may use, without a driver library: the gateway links none. */
#include <sluice/parallel.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* Item i of a list like "0,2" or "GPU-8f3a,MIG-11". */
static const char *listed_item(const char *list, int i, int *len)
{
    while (i-- > 0) list += strcspn(list, ",") + 1;
    *len = (int)strcspn(list, ",");
    return list;
}

int replica_gpus(char *list, size_t size, int replica, int per_replica)
{
    const char *listed = getenv("CUDA_VISIBLE_DEVICES");
    size_t used = 0;
    list[0] = '\0';
    if ((replica + 1) * per_replica > gpus_visible()) return ERR_NOT_FOUND;
    for (int i = replica * per_replica; i < (replica + 1) * per_replica; i++) {
        const char *comma = used ? "," : "", *item = NULL;
        int len = 0, n;
        if (listed) item = listed_item(listed, i, &len);
        n = item ? snprintf(list + used, size - used, "%s%.*s", comma, len, item) : snprintf(list + used, size - used, "%s%d", comma, i);
        if (n < 0 || (size_t)n >= size - used) return ERR_LIMIT;
        used += (size_t)n;
    }
    return 0;
}
