//! The configuration of the C library's allocator.
//!
//! On contention, glibc gives a thread its own heap (arena), up to eight per
//! core, and free memory of one arena cannot be used by another. With some
//! hundred threads, there was more free memory than used memory. One arena per
//! core is enough: no more threads than that run at once.

/// Configures the allocator. Call it before any thread starts. The variable `MALLOC_ARENA_MAX` overrides it.
pub fn set() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let arenas = i32::try_from(cores.max(2)).unwrap_or(i32::MAX);
        // SAFETY: `mallopt` takes two numbers, keeps no pointer, and may be called at any time. If it fails, the
        // default stays.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}
