//! A processor of the virtual world: time passes by what is done.
//!
//! A shard with a [`CpuClock`] tells it what it does ([`Clock::spend`]), the application how long it
//! works ([`CpuClock::work`]), and the clock moves on by what that costs. So overload, shares and
//! blocking are as exact and as repeatable as everything else in this world.

use std::cell::Cell;
use std::rc::Rc;

use millstream_timer::{Clock, Instant, Stage};

/// What each stage costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCosts {
    /// Cycles a microsecond.
    pub mhz: u64,
    cycles: [u64; Stage::ALL.len()],
}

impl CpuCosts {
    /// The costs of a stage in cycles.
    pub fn of(&self, stage: Stage) -> u64 {
        self.cycles[stage as usize]
    }

    /// The same with another cost of one stage.
    #[must_use]
    pub fn with(mut self, stage: Stage, cycles: u64) -> Self {
        self.cycles[stage as usize] = cycles;
        self
    }
}

impl Default for CpuCosts {
    /// Round numbers of the order in which the in-memory link's figures lie (`pingpong.mem.cycles`: a
    /// segment in, the application and a segment out take about 250 cycles), for small frames and with
    /// everything in cache. They are not measured stage by stage.
    fn default() -> Self {
        let costs = Self { mhz: 2600, cycles: [0; Stage::ALL.len()] };
        costs
            .with(Stage::Poll, 60)
            .with(Stage::Demux, 60)
            .with(Stage::Segment, 150)
            .with(Stage::Syn, 700)
            .with(Stage::Cookie, 700)
            .with(Stage::Datagram, 80)
            .with(Stage::Refusal, 120)
            .with(Stage::Task, 60)
            .with(Stage::Output, 120)
    }
}

#[derive(Debug)]
struct Cpu {
    costs: CpuCosts,
    /// Cycles that something was done for.
    cycles: Cell<u64>,
    /// Nanoseconds in which nothing was done.
    idle_nanos: Cell<u64>,
    counts: [Cell<u64>; Stage::ALL.len()],
}

/// A clock that moves on by work. Clones are handles on the same processor.
#[derive(Clone, Debug)]
pub struct CpuClock(Rc<Cpu>);

impl CpuClock {
    /// A processor that has done nothing yet.
    pub fn new(costs: CpuCosts) -> Self {
        Self(Rc::new(Cpu {
            costs,
            cycles: Cell::new(0),
            idle_nanos: Cell::new(0),
            counts: Default::default(),
        }))
    }

    /// The application works for so long.
    pub fn work(&self, nanos: u64) {
        let cpu = &*self.0;
        cpu.cycles.set(cpu.cycles.get() + nanos * cpu.costs.mhz / 1000);
    }

    /// Idles until `then`, unless that is in the past.
    pub fn idle_until(&self, then: Instant) {
        let idle = &self.0.idle_nanos;
        idle.set(idle.get() + then.nanos_since(self.now()));
    }

    /// Nanoseconds for which it did something.
    pub fn busy_nanos(&self) -> u64 {
        (u128::from(self.0.cycles.get()) * 1000 / u128::from(self.0.costs.mhz)) as u64
    }

    /// How often a stage was done.
    pub fn count(&self, stage: Stage) -> u64 {
        self.0.counts[stage as usize].get()
    }
}

impl Clock for CpuClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.idle_nanos.get() + self.busy_nanos())
    }

    fn spends(&self) -> bool {
        true
    }

    fn spend(&self, stage: Stage, count: u64) {
        let cpu = &*self.0;
        cpu.cycles.set(cpu.cycles.get() + count * cpu.costs.of(stage));
        let counter = &cpu.counts[stage as usize];
        counter.set(counter.get() + count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_work_and_idling() {
        let cpu = CpuClock::new(CpuCosts::default().with(Stage::Demux, 26));
        cpu.spend(Stage::Demux, 100);
        assert_eq!(cpu.now(), Instant::from_micros(1));
        cpu.work(5_000);
        cpu.clone().idle_until(Instant::from_micros(10));
        assert_eq!((cpu.now(), cpu.busy_nanos()), (Instant::from_micros(10), 6_000));
        cpu.idle_until(Instant::from_micros(9));
        assert_eq!(cpu.now(), Instant::from_micros(10));
        assert_eq!((cpu.count(Stage::Demux), cpu.count(Stage::Task)), (100, 0));
        // What a division loses does not add up.
        (0..1000).for_each(|_| cpu.spend(Stage::Demux, 1));
        assert_eq!(cpu.busy_nanos(), 16_000);
    }
}
