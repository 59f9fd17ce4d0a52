/* gpu.c - the first GPU as NVML tells it: name, driver, clocks. Looked up at run time: no header, nothing to link, and a
 * machine without a driver simply has no GPU. */
#include <sluice/bench.h>

#include <dlfcn.h>
#include <string.h>

enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 };

struct nvml {
    int (*init)(void);
    int (*shutdown)(void);
    int (*count)(unsigned *count);
    int (*device)(unsigned index, void **device);
    int (*name)(void *device, char *name, unsigned size);
    int (*clock)(void *device, int type, unsigned *mhz);
    int (*driver)(char *version, unsigned size);
};

/* dlsym gives data pointers: copied as bytes, the way POSIX says. */
static bool find(void *library, const char *symbol, void *function, size_t size)
{
    void *found = dlsym(library, symbol);

    if (found) memcpy(function, &found, size);
    return found != NULL;
}

#define FIND(library, symbol, member) find(library, symbol, &(member), sizeof(member))

static bool load(void *library, struct nvml *nvml)
{
    return FIND(library, "nvmlInit_v2", nvml->init) && FIND(library, "nvmlShutdown", nvml->shutdown) &&
           FIND(library, "nvmlDeviceGetCount_v2", nvml->count) &&
           FIND(library, "nvmlDeviceGetHandleByIndex_v2", nvml->device) &&
           FIND(library, "nvmlDeviceGetName", nvml->name) && FIND(library, "nvmlDeviceGetClockInfo", nvml->clock) &&
           FIND(library, "nvmlSystemGetDriverVersion", nvml->driver);
}

static void look(const struct nvml *nvml, struct bench_gpu *gpu)
{
    unsigned count = 0, mhz = 0;
    void *device = NULL;

    if (nvml->count(&count) || !count || nvml->device(0, &device)) return;
    gpu->count = (int)count;
    if (nvml->name(device, gpu->name, sizeof gpu->name)) gpu->name[0] = '\0';
    if (nvml->driver(gpu->driver, sizeof gpu->driver)) gpu->driver[0] = '\0';
    if (!nvml->clock(device, NVML_CLOCK_SM, &mhz)) gpu->sm_clock_mhz = (int)mhz;
    if (!nvml->clock(device, NVML_CLOCK_MEM, &mhz)) gpu->mem_clock_mhz = (int)mhz;
}

void bench_gpu_look(struct bench_gpu *gpu)
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    struct nvml nvml;

    *gpu = (struct bench_gpu){ 0 };
    if (!library) return;
    if (load(library, &nvml) && !nvml.init()) {
        look(&nvml, gpu);
        nvml.shutdown();
    }
    dlclose(library);
}

/* Measured with a plain read of several GB, not the data sheet's figure. */
double bench_known_bandwidth_gbs(const char *gpu_name)
{
    static const struct { const char *part; double gbs; } known[] = { { "H200", 4450 }, { "H100", 3100 } };

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strstr(gpu_name, known[i].part)) return known[i].gbs;
    return 0;
}
