//! Peak memory of this process.

/// The largest memory of this process so far, in bytes; none where the system does not tell.
pub(crate) fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| 1024.0 * kib)
}

/// Begins [`peak`] anew, where the system lets it.
pub(crate) fn forget_peak() {
    if let Err(err) = std::fs::write("/proc/self/clear_refs", "5") {
        println!("peak memory is that of the whole run: {err}");
    }
}
