// A library that says what an OpenBLAS older than the processor says; the doctor's test loads it.
extern "C" {
const char* openblas_get_config() { return "OpenBLAS 0.3.21 DYNAMIC_ARCH Prescott MAX_THREADS=64"; }
const char* openblas_get_corename() { return "Prescott"; }
}
