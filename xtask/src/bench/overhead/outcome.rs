// SPDX-License-Identifier: MIT
//! What came out: instructions added per exit, for people and as JSON.

use std::fmt;

use anyhow::{Context, Result, ensure};
use exitregs_lab::overhead::{Measured, Run};
use serde::Serialize;

use super::Work;
use super::ways::{PAIR, Sees, UNTRACED, Way};

/// Runs of the same that differ by more than this share are worth a remark.
const SPREAD: f64 = 0.01;
/// What a watcher may count more or less than KVM: exits before it was ready, or of other guests.
const TOLERANCE: f64 = 0.01;

/// Everything.
#[derive(Serialize)]
pub struct Report {
    /// The kernel, as `uname -r` prints it.
    kernel: String,
    workloads: Vec<Workload>,
    ways: Vec<Row>,
}

#[derive(Serialize)]
struct Workload {
    name: &'static str,
    description: &'static str,
    /// Exits of a run.
    exits: u64,
    /// Instructions of the vCPU's thread per exit while nobody watches.
    untraced: f64,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Events that it counted, per exit.
    seen: f64,
    /// By workload.
    added: Vec<Added>,
}

/// Instructions per exit, more than while nobody watches.
#[derive(Serialize)]
struct Added {
    /// Of the vCPU's thread.
    vcpu: f64,
    /// Of the whole machine.
    machine: f64,
    /// Difference of the largest and the smallest of the runs, as a share of their median.
    spread: f64,
    /// What was measured, nothing subtracted.
    runs: Vec<Run>,
}

/// Instructions of one workload under one way of watching.
struct Cost {
    vcpu: f64,
    machine: f64,
    exits: f64,
    spread: f64,
}

impl Cost {
    fn of(runs: &[Run]) -> Result<Self> {
        let values = |value: fn(&Run) -> u64| {
            let mut values: Vec<u64> = runs.iter().map(value).collect();
            values.sort_unstable();
            values
        };
        let median = |values: &[u64]| values.get(values.len() / 2).map(|&value| value as f64);
        let vcpu = values(|run| run.vcpu);
        let (Some(&least), Some(&most), Some(middle)) = (vcpu.first(), vcpu.last(), median(&vcpu)) else {
            anyhow::bail!("there was no run");
        };
        let machine = median(&values(|run| run.machine)).context("there was no run")?;
        let exits =
            median(&values(|run| run.exits)).filter(|&exits| exits > 0.0).context("there was no exit")?;
        Ok(Self { vcpu: middle, machine, exits, spread: (most - least) as f64 / middle })
    }
}

impl Report {
    /// Compares what was measured. All slices are in the order of the plan.
    ///
    /// # Errors
    /// If a watcher did not see the exits that it was to see: then its cost says nothing.
    pub fn new(kernel: String, works: &[Work], ways: &[Way], measured: &[Measured]) -> Result<Self> {
        ensure!(ways.len() == measured.len(), "{} of {} were measured", measured.len(), ways.len());
        let costs = |measured: &Measured| -> Result<Vec<Cost>> {
            measured.workloads.iter().map(|runs| Cost::of(runs)).collect()
        };
        let base = measured
            .first()
            .filter(|first| first.name == UNTRACED)
            .context("what costs nothing comes first")?;
        let base = costs(base)?;
        ensure!(base.len() == works.len(), "{} of {} workloads were measured", base.len(), works.len());
        let mut rows = Vec::new();
        for (way, measured) in ways.iter().zip(measured) {
            let seen = way.seen(measured)? as f64 / measured.all_exits as f64;
            let expected = match way.sees {
                Sees::Nothing => Some(0.0),
                Sees::Some => None,
                Sees::All => Some(1.0),
                Sees::Both => Some(2.0),
            };
            if let Some(expected) = expected {
                ensure!(
                    (seen - expected).abs() <= TOLERANCE,
                    "{} saw {seen:.3} events per exit instead of {expected}: {}",
                    way.name,
                    measured.output.concat()
                );
            }
            let costs = costs(measured)?;
            let added = costs.iter().zip(&base).zip(&measured.workloads).map(|((cost, base), runs)| Added {
                vcpu: (cost.vcpu - base.vcpu) / cost.exits,
                machine: (cost.machine - base.machine) / cost.exits,
                spread: cost.spread,
                runs: runs.clone(),
            });
            rows.push(Row { name: way.name, seen, added: added.collect() });
        }
        let workloads = works.iter().zip(&base).map(|(work, base)| Workload {
            name: work.name,
            description: work.description,
            exits: base.exits as u64,
            untraced: base.vcpu / base.exits,
        });
        Ok(Self { kernel, workloads: workloads.collect(), ways: rows })
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.ways.iter().find(|row| row.name == name)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Instructions added per exit, Linux {}", self.kernel)?;
        for Workload { name, description, exits, untraced } in &self.workloads {
            writeln!(
                f,
                "  {name}: {description}: {exits} exits, {untraced:.0} instructions each while nobody watches"
            )?;
        }
        writeln!(
            f,
            "  thread: by the vCPU's thread, so in the kernel. machine: also by the program that watches."
        )?;
        writeln!(
            f,
            "  x pair: as a multiple of `{PAIR}`. seen: events per exit, both workloads together.\n"
        )?;

        write!(f, "{:36}", "")?;
        for workload in &self.workloads {
            write!(f, " {:>9} {:>8} {:>9}", format!("{} thread", workload.name), "x pair", "machine")?;
        }
        writeln!(f, " {:>6}", "seen")?;
        let pair = self.row(PAIR);
        for row in self.ways.iter().filter(|row| row.name != UNTRACED) {
            write!(f, "{:36}", row.name)?;
            for (number, added) in row.added.iter().enumerate() {
                let ratio = pair
                    .map_or_else(String::new, |pair| format!("{:.2}", added.vcpu / pair.added[number].vcpu));
                write!(
                    f,
                    " {:>9} {ratio:>8} {:>9}",
                    format!("{:+.0}", added.vcpu),
                    format!("{:+.0}", added.machine)
                )?;
            }
            writeln!(f, " {:>6.2}", row.seen)?;
        }

        for (ours, peers) in COMPARED {
            let Some(ours) = self.row(ours) else { continue };
            let ratios: Vec<_> = peers
                .iter()
                .filter_map(|&peer| self.row(peer))
                .map(|peer| {
                    let ratios: Vec<_> = ours
                        .added
                        .iter()
                        .zip(&peer.added)
                        .map(|(ours, peer)| format!("{:.2}", ours.vcpu / peer.vcpu))
                        .collect();
                    format!("{} x {}", ratios.join(" / "), peer.name)
                })
                .collect();
            if !ratios.is_empty() {
                writeln!(f, "\n{} costs (thread, {}):", ours.name, self.names().join(" / "))?;
                for ratio in ratios {
                    writeln!(f, "  {ratio}")?;
                }
            }
        }
        for row in &self.ways {
            for (workload, added) in
                self.workloads.iter().zip(&row.added).filter(|(_, added)| added.spread > SPREAD)
            {
                let percent = added.spread * 100.0;
                writeln!(f, "\nThe runs of {} {} differ by {percent:.1} %.", row.name, workload.name)?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn names(&self) -> Vec<&'static str> {
        self.workloads.iter().map(|workload| workload.name).collect()
    }
}

/// Ours, and those that do a part of the same.
const COMPARED: [(&str, &[&str]); 2] = [
    (
        "exitregs stat",
        &[
            PAIR,
            "kvm_exit, hist by exit_reason",
            "perf kvm stat record",
            "bpftrace count by reason",
            "bpftrace time by reason",
        ],
    ),
    (
        "exitregs trace",
        &[
            PAIR,
            "perf record kvm_exit",
            "perf record kvm_exit + kvm_entry",
            "perf kvm stat record",
            "bpftrace time by reason",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn run(vcpu: u64) -> Run {
        Run { vcpu, machine: 2 * vcpu, exits: 10 }
    }

    #[test]
    fn the_median_counts_and_the_spread_shows() {
        let cost = Cost::of(&[run(1000), run(5000), run(1010)]).unwrap();
        assert_eq!((cost.vcpu, cost.machine, cost.exits), (1010.0, 2020.0, 10.0));
        assert!(cost.spread > 3.9 && cost.spread < 4.0);
        assert!(Cost::of(&[]).is_err());
    }
}
