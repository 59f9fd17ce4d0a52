/* version.h - the version of all three programs; CMakeLists.txt and packages say the same. */
#ifndef SLUICE_VERSION_H
#define SLUICE_VERSION_H

#define SLUICE_VERSION "0.1.0"

#endif
