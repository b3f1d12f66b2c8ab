//! The `saesweep` program: everything it does is in the library.

fn main() -> std::process::ExitCode {
    saesweep::cli::main()
}
