//! The tree: making, changing and removing containers, and all that is refused.

use millstream_timer::Instant;

use super::{
    CONTAINERS_MAX, ContainerError, ContainerId, ContainerSpec, ContainerUsage, DEPTH_MAX,
    PRIORITIES, PRIORITY_DEFAULT, Work,
};

/// The whole shard.
pub(crate) const ROOT: u16 = 0;
/// What nobody else is charged for.
pub(crate) const SYSTEM: u16 = 1;
/// Where work goes that is bound to no other.
pub(crate) const DEFAULT: u16 = 2;

/// No container.
pub(super) const NOBODY: u16 = u16::MAX;

/// All of a parent, in units of a share.
pub(super) const WHOLE: u32 = 10_000;

/// Of the core, what ARP, ICMP and strays may take, in units of a share.
const SYSTEM_LIMIT: u32 = WHOLE / 10;

/// A processor limit and what is left of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// In units of a share.
    pub share: u32,
    /// Nanoseconds that may be used now; below zero it pauses.
    pub credit_nanos: i64,
    pub since: Instant,
}

/// A container, or what is left of one.
#[derive(Debug)]
pub(super) struct Node {
    pub name: Box<str>,
    pub generation: u16,
    pub parent: u16,
    pub children: u16,
    pub priority: u8,
    /// As asked for.
    pub share: Option<u32>,
    pub memory_limit: u64,
    pub limit: Option<Limit>,
    pub usage: ContainerUsage,
    /// Sockets and tasks that are bound to it.
    pub bindings: u32,
    /// It exists.
    pub lives: bool,

    /// It has something to do itself.
    pub active: bool,
    /// It pauses until its limit lets it go on.
    pub throttled: bool,
    /// The highest priority of what is to be done in it.
    pub band: u8,
    /// Virtual time of one nanosecond of its work.
    pub stride: u64,
    /// Virtual time that it has had. Wraps.
    pub pass: u64,
    /// Place in its parent's heap; [`NOBODY`]: none.
    pub place: u16,
    /// Children that have something to do, the next one first.
    pub heap: Vec<u16>,
    /// Of a parent: how far the virtual time of each band has come.
    pub served: Option<Box<[u64; PRIORITIES as usize]>>,
    /// Among those that wait for their turn, by how long they have.
    pub next: u16,
    pub previous: u16,
    pub waits_since: Instant,
}

impl Node {
    fn new(name: &str, parent: u16, priority: u8) -> Self {
        Self {
            name: name.into(),
            generation: 0,
            parent,
            children: 0,
            priority,
            share: None,
            memory_limit: u64::MAX,
            limit: None,
            usage: ContainerUsage::default(),
            bindings: 0,
            lives: true,
            active: false,
            throttled: false,
            band: priority,
            stride: 1,
            pass: 0,
            place: NOBODY,
            heap: Vec::new(),
            served: None,
            next: NOBODY,
            previous: NOBODY,
            waits_since: Instant::ZERO,
        }
    }
}

/// All containers of a shard.
#[derive(Debug)]
pub(crate) struct Containers {
    pub(super) nodes: Vec<Node>,
    /// Those that pause.
    pub(super) throttled: Vec<u16>,
    /// When the first of them may go on.
    pub(super) resume_at: Instant,
    /// Who has waited longest, and who came last.
    pub(super) first: u16,
    pub(super) last: u16,
}

/// A percentage in units of a share.
fn share_of(
    name: &str,
    what: &'static str,
    percent: Option<f64>,
) -> Result<Option<u32>, ContainerError> {
    let Some(percent) = percent else { return Ok(None) };
    let share = (percent * f64::from(WHOLE) / 100.0).round();
    if !(1.0..=f64::from(WHOLE)).contains(&share) {
        return Err(ContainerError::Percent(name.to_owned(), what, percent));
    }
    Ok(Some(share as u32))
}

impl Containers {
    /// The shard, what is charged to nobody else, and one for all the rest.
    pub fn new() -> Self {
        let mut nodes = Vec::with_capacity(CONTAINERS_MAX);
        nodes.push(Node::new("shard", ROOT, PRIORITY_DEFAULT));
        nodes.push(Node::new("system", ROOT, PRIORITIES - 1));
        nodes.push(Node::new("default", ROOT, PRIORITY_DEFAULT));
        nodes[usize::from(ROOT)].children = 2;
        nodes[usize::from(SYSTEM)].limit =
            Some(Limit { share: SYSTEM_LIMIT, credit_nanos: 0, since: Instant::ZERO });
        let mut containers = Self {
            nodes,
            throttled: Vec::with_capacity(CONTAINERS_MAX),
            resume_at: Instant::FAR_FUTURE,
            first: NOBODY,
            last: NOBODY,
        };
        containers.weigh(ROOT);
        containers
    }

    pub(super) fn node(&self, index: u16) -> &Node {
        &self.nodes[usize::from(index)]
    }

    pub(super) fn node_mut(&mut self, index: u16) -> &mut Node {
        &mut self.nodes[usize::from(index)]
    }

    /// The index of a container that lives.
    pub fn index(&self, id: ContainerId) -> Result<u16, ContainerError> {
        match self.nodes.get(usize::from(id.index)) {
            Some(node) if node.lives && node.generation == id.generation => Ok(id.index),
            _ => Err(ContainerError::Unknown),
        }
    }

    /// The index of a container to which work can be bound.
    pub fn leaf(&self, id: ContainerId) -> Result<u16, ContainerError> {
        let index = self.index(id)?;
        let node = self.node(index);
        if node.children > 0 || index == ROOT {
            return Err(ContainerError::HasParts(node.name.to_string()));
        }
        Ok(index)
    }

    pub fn id(&self, index: u16) -> ContainerId {
        ContainerId { index, generation: self.node(index).generation }
    }

    /// The container of a name.
    pub fn find(&self, name: &str) -> Option<ContainerId> {
        let at = self.nodes.iter().position(|node| node.lives && &*node.name == name)?;
        Some(self.id(at as u16))
    }

    pub fn name(&self, index: u16) -> &str {
        &self.node(index).name
    }

    pub fn priority(&self, index: u16) -> u8 {
        self.node(index).priority
    }

    pub fn usage(&self, index: u16) -> ContainerUsage {
        self.node(index).usage
    }

    /// All containers but the shard as a whole.
    pub fn all(&self) -> impl Iterator<Item = ContainerId> + '_ {
        let living = self.nodes.iter().enumerate().skip(1).filter(|(_, node)| node.lives);
        living.map(|(index, node)| ContainerId { index: index as u16, generation: node.generation })
    }

    /// Whether there is anything to choose from.
    pub fn are_several(&self) -> bool {
        self.nodes.iter().filter(|node| node.lives).count() > usize::from(DEFAULT) + 1
    }

    /// Makes containers, in whatever order their parents come; all or none.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn create_all(
        &mut self,
        specs: &[ContainerSpec],
    ) -> Result<Vec<ContainerId>, ContainerError> {
        let mut made = vec![None; specs.len()];
        let outcome = self.create_each(specs, &mut made);
        if outcome.is_err() {
            // The youngest first: no parent goes before its parts.
            let mut made: Vec<_> = made.iter().flatten().copied().collect();
            while !made.is_empty() {
                made.retain(|id| self.remove(*id).is_err());
            }
        }
        outcome?;
        Ok(made.into_iter().flatten().collect())
    }

    fn create_each(
        &mut self,
        specs: &[ContainerSpec],
        made: &mut [Option<ContainerId>],
    ) -> Result<(), ContainerError> {
        loop {
            let mut progress = false;
            for (spec, place) in specs.iter().zip(made.iter_mut()) {
                let parent = spec.parent.as_deref();
                if place.is_none() && parent.is_none_or(|parent| self.find(parent).is_some()) {
                    *place = Some(self.create(spec)?);
                    progress = true;
                }
            }
            if progress {
                continue;
            }
            let Some((spec, _)) = specs.iter().zip(made.iter()).find(|(_, place)| place.is_none())
            else {
                return Ok(());
            };
            let parent = spec.parent.as_deref().unwrap_or_default();
            return Err(if specs.iter().any(|other| other.name == parent) {
                ContainerError::Cycle(spec.name.clone())
            } else {
                ContainerError::NoParent(spec.name.clone(), parent.to_owned())
            });
        }
    }

    /// Makes a container.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn create(&mut self, spec: &ContainerSpec) -> Result<ContainerId, ContainerError> {
        if spec.name.is_empty() || self.find(&spec.name).is_some() || spec.name == "shard" {
            return Err(ContainerError::Name(spec.name.clone()));
        }
        if spec.priority >= PRIORITIES {
            return Err(ContainerError::Priority(spec.name.clone(), spec.priority));
        }
        let share = share_of(&spec.name, "the share", spec.share_percent)?;
        let limit = share_of(&spec.name, "the limit", spec.cpu_limit_percent)?;
        let parent = match &spec.parent {
            None => ROOT,
            Some(name) => {
                let id = self
                    .find(name)
                    .ok_or_else(|| ContainerError::NoParent(spec.name.clone(), name.clone()))?;
                self.parent_to_be(id.index, &spec.name, 1)?
            }
        };
        self.check_shares(parent, NOBODY, share)?;
        let mut node = Node::new(&spec.name, parent, spec.priority);
        node.share = share;
        node.limit = limit.map(|share| Limit { share, credit_nanos: 0, since: Instant::ZERO });
        node.memory_limit = spec.memory_limit_bytes.unwrap_or(u64::MAX);
        let index = match self.nodes.iter().position(|node| !node.lives) {
            Some(at) => {
                // A name of the old one finds nothing.
                node.generation = self.nodes[at].generation.wrapping_add(1);
                self.nodes[at] = node;
                at as u16
            }
            None if self.nodes.len() < CONTAINERS_MAX => {
                self.nodes.push(node);
                self.nodes.len() as u16 - 1
            }
            None => return Err(ContainerError::TooMany),
        };
        self.adopt(parent);
        Ok(self.id(index))
    }

    /// Whether a container may get parts that are `levels` deep.
    fn parent_to_be(&self, index: u16, name: &str, levels: usize) -> Result<u16, ContainerError> {
        let node = self.node(index);
        if index == SYSTEM || index == DEFAULT {
            return Err(ContainerError::Fixed(if index == SYSTEM { "system" } else { "default" }));
        }
        if node.bindings > 0 || node.active {
            return Err(ContainerError::HasWork(node.name.to_string()));
        }
        if self.path(index).count() + levels > DEPTH_MAX {
            return Err(ContainerError::TooDeep(name.to_owned()));
        }
        Ok(index)
    }

    /// A parent has got one more child.
    fn adopt(&mut self, parent: u16) {
        let node = self.node_mut(parent);
        node.children += 1;
        let room = usize::from(node.children).saturating_sub(node.heap.len());
        node.heap.reserve(room);
        self.weigh(parent);
    }

    /// The container and all above it, the shard last.
    pub fn path(&self, index: u16) -> impl Iterator<Item = u16> + '_ {
        let mut at = Some(index);
        std::iter::from_fn(move || {
            let this = at?;
            at = (this != ROOT).then(|| self.node(this).parent);
            Some(this)
        })
    }

    fn children(&self, parent: u16) -> impl Iterator<Item = u16> + '_ {
        let nodes = self.nodes.iter().enumerate().skip(1);
        nodes.filter(move |(_, node)| node.lives && node.parent == parent).map(|(i, _)| i as u16)
    }

    fn check_shares(
        &self,
        parent: u16,
        without: u16,
        added: Option<u32>,
    ) -> Result<(), ContainerError> {
        let others = self.children(parent).filter(|child| *child != without);
        let sum: u32 = others.filter_map(|child| self.node(child).share).chain(added).sum();
        if sum > WHOLE {
            let percent = f64::from(sum) * 100.0 / f64::from(WHOLE);
            return Err(ContainerError::SharesOver(self.name(parent).to_owned(), percent));
        }
        Ok(())
    }

    /// Gives those children of a parent that have no share an equal part of what the others leave.
    fn weigh(&mut self, parent: u16) {
        if self.node(parent).served.is_none() {
            self.node_mut(parent).served = Some(Box::new([0; PRIORITIES as usize]));
        }
        let given: u32 = self.children(parent).filter_map(|child| self.node(child).share).sum();
        let others =
            self.children(parent).filter(|child| self.node(*child).share.is_none()).count();
        let each = ((WHOLE - given) / others.max(1) as u32).max(1);
        for index in 1..self.nodes.len() {
            let node = &mut self.nodes[index];
            if node.lives && node.parent == parent {
                // With 10 bits more, so that what a division loses does not matter.
                node.stride = u64::from(WHOLE << 10) / u64::from(node.share.unwrap_or(each));
            }
        }
    }

    /// Removes a container that has no parts and to which nothing is bound.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn remove(&mut self, id: ContainerId) -> Result<(), ContainerError> {
        let index = self.index(id)?;
        if index <= DEFAULT {
            return Err(ContainerError::Fixed(["shard", "system", "default"][usize::from(index)]));
        }
        let node = self.node(index);
        if node.children > 0 {
            return Err(ContainerError::HasParts(node.name.to_string()));
        }
        if node.bindings > 0 || node.active {
            return Err(ContainerError::HasWork(node.name.to_string()));
        }
        let parent = node.parent;
        self.throttled.retain(|other| *other != index);
        let node = self.node_mut(index);
        node.lives = false;
        node.throttled = false;
        self.node_mut(parent).children -= 1;
        self.weigh(parent);
        Ok(())
    }

    /// Makes a container a part of another one, with all that is in it.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn set_parent(
        &mut self,
        id: ContainerId,
        parent: Option<ContainerId>,
    ) -> Result<(), ContainerError> {
        let index = self.index(id)?;
        let name = self.name(index).to_owned();
        if index <= DEFAULT {
            return Err(ContainerError::Fixed(["shard", "system", "default"][usize::from(index)]));
        }
        let parent = match parent {
            None => ROOT,
            Some(parent) => {
                let parent = self.index(parent)?;
                if self.path(parent).any(|above| above == index) {
                    return Err(ContainerError::Cycle(name));
                }
                self.parent_to_be(parent, &name, self.height(index))?
            }
        };
        self.check_shares(parent, index, self.node(index).share)?;
        let before = self.node(index).parent;
        self.leave_heap(index);
        self.node_mut(before).children -= 1;
        self.refresh(before);
        self.node_mut(index).parent = parent;
        self.weigh(before);
        self.adopt(parent);
        self.refresh(index);
        Ok(())
    }

    /// Levels of a container with its parts.
    fn height(&self, index: u16) -> usize {
        1 + self.children(index).map(|child| self.height(child)).max().unwrap_or(0)
    }

    /// Changes what a container is, except its name and parent.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn reconfigure(
        &mut self,
        id: ContainerId,
        spec: &ContainerSpec,
    ) -> Result<(), ContainerError> {
        let index = self.index(id)?;
        let name = self.name(index).to_owned();
        if index == ROOT {
            return Err(ContainerError::Fixed("shard"));
        }
        if spec.priority >= PRIORITIES {
            return Err(ContainerError::Priority(name, spec.priority));
        }
        let share = share_of(&name, "the share", spec.share_percent)?;
        let limit = share_of(&name, "the limit", spec.cpu_limit_percent)?;
        let parent = self.node(index).parent;
        self.check_shares(parent, index, share)?;
        let node = self.node_mut(index);
        node.priority = spec.priority;
        node.share = share;
        node.memory_limit = spec.memory_limit_bytes.unwrap_or(u64::MAX);
        node.limit = limit.map(|share| match node.limit {
            Some(before) => Limit { share, ..before },
            None => Limit { share, credit_nanos: 0, since: Instant::ZERO },
        });
        self.weigh(parent);
        self.refresh(index);
        Ok(())
    }

    /// One more socket or task is bound to a leaf, or one less.
    pub fn bind(&mut self, leaf: u16, count: i32) {
        let node = self.node_mut(leaf);
        node.bindings = node.bindings.saturating_add_signed(count);
    }

    /// Notes processor time that was used, for the container and all above it; their order follows.
    pub fn charge(&mut self, leaf: u16, nanos: u64, work: Work, now: Instant) {
        let mut at = leaf;
        loop {
            let usage = &mut self.node_mut(at).usage;
            usage.cpu_nanos += nanos;
            match work {
                Work::Protocol => usage.protocol_nanos += nanos,
                Work::Task => usage.task_nanos += nanos,
                Work::System => {}
            }
            self.advance(at, nanos, now);
            if at == ROOT {
                return;
            }
            at = self.node(at).parent;
        }
    }

    /// Notes something else in the usage of a container and all above it.
    pub fn note(&mut self, leaf: u16, mut what: impl FnMut(&mut ContainerUsage)) {
        let mut at = leaf;
        loop {
            let node = self.node_mut(at);
            what(&mut node.usage);
            if at == ROOT {
                return;
            }
            at = node.parent;
        }
    }

    /// Whether a container or one above it holds more memory than it may.
    pub fn over_memory(&self, leaf: u16) -> bool {
        self.path(leaf).any(|at| {
            let node = self.node(at);
            node.usage.held_bytes >= node.memory_limit
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, parent: Option<&str>, share: Option<f64>) -> ContainerSpec {
        ContainerSpec {
            parent: parent.map(str::to_owned),
            share_percent: share,
            ..ContainerSpec::new(name)
        }
    }

    #[test]
    fn what_cannot_be_is_refused_in_a_sentence() {
        let mut all = Containers::new();
        all.create_all(&[spec("a", None, Some(70.0)), spec("b", Some("a"), None)]).unwrap();
        let mut refuse = |specs: &[ContainerSpec], words: &str| {
            let before = all.all().count();
            let error = all.create_all(specs).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(all.all().count(), before, "{error}");
        };
        refuse(&[spec("c", None, Some(31.0))], "the parts of `shard` come to 101.00 %");
        refuse(&[spec("c", None, Some(10.0)), spec("d", None, Some(21.0))], "101.00 %");
        refuse(&[spec("x", Some("y"), None), spec("y", Some("x"), None)], "part of itself");
        refuse(&[spec("x", Some("x"), None)], "part of itself");
        refuse(&[spec("ok", None, None), spec("x", Some("z"), None)], "`z`, which does not exist");
        refuse(&[ContainerSpec { priority: 64, ..spec("p", None, None) }], "between 0 and 63");
        refuse(&[spec("s", None, Some(0.0))], "between 0.01 and 100");
        refuse(&[spec("s", None, Some(f64::NAN))], "between 0.01 and 100");
        let limit = Some(101.0);
        refuse(&[ContainerSpec { cpu_limit_percent: limit, ..spec("l", None, None) }], "the limit");
        refuse(&[spec("a", None, None)], "taken or empty");
        refuse(&[spec("", None, None)], "taken or empty");
        refuse(&[spec("d", Some("default"), None)], "belongs to the shard");
        let deep: Vec<_> = (0..9)
            .map(|i| {
                spec(&format!("d{i}"), (i > 0).then(|| format!("d{}", i - 1)).as_deref(), None)
            })
            .collect();
        refuse(&deep, "deeper than");
    }

    #[test]
    fn work_is_bound_to_leaves_alone() {
        let mut all = Containers::new();
        let ids = all.create_all(&[spec("b", Some("a"), None), spec("a", None, None)]).unwrap();
        let (b, a) = (ids[0], ids[1]);
        assert_eq!(all.leaf(a), Err(ContainerError::HasParts("a".into())));
        let leaf = all.leaf(b).unwrap();
        all.bind(leaf, 1);
        assert_eq!(
            all.create(&spec("c", Some("b"), None)),
            Err(ContainerError::HasWork("b".into()))
        );
        assert_eq!(all.remove(b), Err(ContainerError::HasWork("b".into())));
        assert_eq!(all.remove(a), Err(ContainerError::HasParts("a".into())));
        all.bind(leaf, -1);
        all.remove(b).unwrap();
        all.remove(a).unwrap();
        assert_eq!(all.leaf(b), Err(ContainerError::Unknown));
        // The place is taken again, under another name.
        let again = all.create(&spec("b", None, None)).unwrap();
        assert!(again != b && all.leaf(b).is_err());
        assert!(all.remove(ContainerId::DEFAULT).is_err());
    }

    #[test]
    fn a_subtree_moves_but_not_into_itself() {
        let mut all = Containers::new();
        let specs = [
            spec("a", None, Some(60.0)),
            spec("b", Some("a"), Some(60.0)),
            spec("c", None, Some(40.0)),
            spec("d", Some("c"), Some(50.0)),
        ];
        let ids = all.create_all(&specs).unwrap();
        assert_eq!(all.set_parent(ids[0], Some(ids[1])), Err(ContainerError::Cycle("a".into())));
        assert_eq!(all.set_parent(ids[0], Some(ids[0])), Err(ContainerError::Cycle("a".into())));
        let error = all.set_parent(ids[1], Some(ids[2])).unwrap_err();
        assert!(error.to_string().contains("110.00 %"), "{error}");
        let less = spec("b", None, Some(50.0));
        all.reconfigure(ids[1], &less).unwrap();
        all.set_parent(ids[1], Some(ids[2])).unwrap();
        assert_eq!(all.path(ids[1].index).collect::<Vec<_>>(), [ids[1].index, ids[2].index, ROOT]);
        // The old parent has no parts any more and can have work.
        assert!(all.leaf(ids[0]).is_ok());
    }

    #[test]
    fn usage_goes_up_the_tree() {
        let mut all = Containers::new();
        let ids = all.create_all(&[spec("a", None, None), spec("b", Some("a"), None)]).unwrap();
        all.charge(ids[1].index, 70, Work::Task, Instant::ZERO);
        all.charge(SYSTEM, 30, Work::System, Instant::ZERO);
        all.note(ids[1].index, |usage| usage.held_bytes += 5);
        let of = |index: u16| all.usage(index);
        assert_eq!((of(ids[0].index).task_nanos, of(ids[0].index).held_bytes), (70, 5));
        assert_eq!((of(ROOT).cpu_nanos, of(SYSTEM).cpu_nanos), (100, 30));
    }
}
