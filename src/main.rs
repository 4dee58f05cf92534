//! The `steadfast` command.

/// Cheaper than glibc's malloc for each request, and it keeps less of what a crowd of connections has used.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    steadfast::cli::main()
}
