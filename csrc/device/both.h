// Marks a function for the host and the device.
#pragma once

#if defined(__CUDACC__)
#define FASTCLF_BOTH __host__ __device__
#else
#define FASTCLF_BOTH
#endif
