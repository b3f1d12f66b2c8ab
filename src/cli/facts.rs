//! `run.json`: what tables and report need to know of a run beyond its trials' own files.

use crate::{
    metric::Goal,
    rundir::{RunDir, RunDirError, read_text, write_atomic},
    spec::Plan,
    table::{HostInfo, Objective, StoreLine},
    trial::TrialId,
};
use serde::{Deserialize, Serialize};

/// Version of `run.json`; raise it when a field changes its meaning or a required one is added.
const FACTS_VERSION: u32 = 1;

/// The content of `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RunFacts {
    version: u32,
    /// The sweep's name.
    pub(super) name: String,
    /// `grid`, `random`, `list`.
    pub(super) strategy: String,
    objective_metric: String,
    maximize: bool,
    /// Trials that the report ranks.
    pub(super) top: usize,
    /// Settings that vary.
    pub(super) varied_keys: Vec<String>,
    /// Remarks of the planner.
    pub(super) notes: Vec<String>,
    /// All planned trials, in plan order.
    pub(super) trials: Vec<TrialId>,
    /// The report's template, where it is not the built-in one.
    pub(super) template: Option<String>,
    stores: Vec<StoreFact>,
    host: HostFact,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoreFact {
    key: String,
    model: String,
    hook: String,
    dataset: String,
    rows: u64,
    width: usize,
    context_size: usize,
    dtype: String,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct HostFact {
    cpu: String,
    cores: usize,
    isa: String,
    os: String,
    saesweep: String,
}

impl RunFacts {
    /// The facts of a plan on this machine, before its stores are known.
    pub(super) fn new(plan: &Plan, template: Option<String>, host: &HostInfo) -> Self {
        let sweep = &plan.spec.sweep;
        Self {
            version: FACTS_VERSION,
            name: sweep.name.clone(),
            strategy: sweep.strategy.word().to_owned(),
            objective_metric: sweep.objective.metric.clone(),
            maximize: sweep.objective.goal == Goal::Maximize,
            top: plan.spec.report.top,
            varied_keys: plan.varied_keys.clone(),
            notes: plan.notes.clone(),
            trials: plan.trials.iter().map(|trial| trial.id.clone()).collect(),
            template,
            stores: Vec::new(),
            host: HostFact {
                cpu: host.cpu.clone(),
                cores: host.cores,
                isa: host.isa.clone(),
                os: host.os.clone(),
                saesweep: host.saesweep.clone(),
            },
        }
    }

    /// Reads a run's facts; `None` when there are none yet.
    pub(super) fn read(run: &RunDir) -> Result<Option<Self>, RunDirError> {
        let path = run.run_json();
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let malformed = |error: serde_json::Error| RunDirError::Malformed {
            path: path.clone(),
            what: "record of a run",
            detail: error.to_string(),
        };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(malformed)?;
        let version = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        let version = u32::try_from(version).unwrap_or(u32::MAX);
        if version > FACTS_VERSION {
            return Err(RunDirError::Version { path, found: version, known: FACTS_VERSION });
        }
        serde_json::from_value(value).map(Some).map_err(malformed)
    }

    /// Writes them.
    pub(super) fn write(&self, run: &RunDir) -> Result<(), RunDirError> {
        let mut text = serde_json::to_string_pretty(self).expect("invariant: facts are plain data");
        text.push('\n');
        write_atomic(&run.run_json(), text.as_bytes())
    }

    /// Sets the stores.
    pub(super) fn set_stores(&mut self, lines: &[StoreLine]) {
        self.stores = lines
            .iter()
            .map(|line| StoreFact {
                key: line.key.clone(),
                model: line.model.clone(),
                hook: line.hook.clone(),
                dataset: line.dataset.clone(),
                rows: line.rows,
                width: line.width,
                context_size: line.context_size,
                dtype: line.dtype.clone(),
                bytes: line.bytes,
            })
            .collect();
    }

    /// The stores.
    pub(super) fn store_lines(&self) -> Vec<StoreLine> {
        let lines = self.stores.iter().cloned().map(|fact| StoreLine {
            key: fact.key,
            model: fact.model,
            hook: fact.hook,
            dataset: fact.dataset,
            rows: fact.rows,
            width: fact.width,
            context_size: fact.context_size,
            dtype: fact.dtype,
            bytes: fact.bytes,
        });
        lines.collect()
    }

    /// The machine.
    pub(super) fn host(&self) -> HostInfo {
        let HostFact { cpu, cores, isa, os, saesweep } = self.host.clone();
        HostInfo { cpu, cores, isa, os, saesweep }
    }

    /// What the sweep ranks by.
    pub(super) fn objective(&self) -> Objective {
        Objective {
            metric: self.objective_metric.clone(),
            goal: if self.maximize { Goal::Maximize } else { Goal::Minimize },
        }
    }
}

/// This machine and this program.
pub(super) fn this_host() -> HostInfo {
    let uname = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    HostInfo {
        cpu: model.map_or_else(|| word(uname.machine()), |(_, model)| model.trim().to_owned()),
        cores: cores(),
        isa: crate::kernels::Isa::detect().name().to_owned(),
        os: format!("{} {}", word(uname.sysname()), word(uname.release())),
        saesweep: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Cores that this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Name of this host.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_sample_is_read() {
        let run = RunDir::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rundir/run-v1"));
        let facts = RunFacts::read(&run).unwrap().unwrap();
        assert_eq!(facts.trials.len(), 2);
        assert_eq!(facts.objective(), Objective { metric: "ce_loss_score".to_owned(), goal: Goal::Maximize });
        assert_eq!(facts.store_lines()[0].width, 1024);
        let dir = tempfile::tempdir().unwrap();
        let copy = RunDir::new(dir.path());
        assert_eq!(RunFacts::read(&copy).unwrap(), None);
        facts.write(&copy).unwrap();
        assert_eq!(RunFacts::read(&copy).unwrap(), Some(facts));
    }
}
