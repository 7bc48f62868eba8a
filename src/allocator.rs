//! How the C library's allocator is set.
//!
//! glibc gives each thread that contends a heap of its own, up to eight for
//! each core, and what is free in one heap is of no use to another: with some
//! hundred threads, free memory came to more than what was in use. One heap
//! for each core keeps threads as far apart as they can run.

/// Sets the allocator, before any thread is started. `MALLOC_ARENA_MAX` in the environment goes before it.
pub fn set() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let arenas = i32::try_from(cores.max(2)).unwrap_or(i32::MAX);
        // SAFETY: `mallopt` takes two numbers, keeps no pointer, and may be called at any time. Should it fail,
        // the default stays.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}
