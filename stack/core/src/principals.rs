//! What an application says about containers and policies: [`Stack`]'s face on them.

use std::future::Future;
use std::net::SocketAddr;

use crate::agenda::Agenda;
use crate::conn::{ConnId, Facts};
use crate::container::{
    ContainerError, ContainerId, ContainerSpec, ContainerUsage, DEFAULT, Prefix, Standing,
};
use crate::executor::{JoinHandle, RECEIVES_A_RUN, TooManyTasks};
use crate::listener::ListenError;
use crate::policy::{Disposition, RxPolicy};
use crate::requests::{self, RequestQueue, Requests};
use crate::stack::Stack;
use crate::state::{Receiver, State};
use crate::stream::{TcpListener, TcpStream};

/// Why a task cannot be put into a container.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpawnError {
    /// All tasks are in use.
    #[error(transparent)]
    TooMany(#[from] TooManyTasks),
    /// The container cannot have it.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

/// A container and what it has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerReport {
    /// Names it.
    pub id: ContainerId,
    /// For people.
    pub name: String,
    /// What it has used, its parts included.
    pub usage: ContainerUsage,
}

impl Stack {
    /// Makes containers, in whatever order their parents come: all of them, or none.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn create_containers(
        &self,
        specs: &[ContainerSpec],
    ) -> Result<Vec<ContainerId>, ContainerError> {
        let made = self.state().containers.create_all(specs)?;
        self.reschedule(|_| {});
        Ok(made)
    }

    /// Makes a container.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId, ContainerError> {
        let made = self.state().containers.create(spec)?;
        self.reschedule(|_| {});
        Ok(made)
    }

    /// Removes a container that has no parts and to which no socket or task is bound.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn remove_container(&self, id: ContainerId) -> Result<(), ContainerError> {
        self.state().containers.remove(id)?;
        self.reschedule(|_| {});
        Ok(())
    }

    /// Makes a container a part of another one, or of the whole shard.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn move_container(
        &self,
        id: ContainerId,
        parent: Option<ContainerId>,
    ) -> Result<(), ContainerError> {
        self.state().containers.set_parent(id, parent)
    }

    /// Gives a container the priority, share and limits of `spec`; its name and parent stay.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn reconfigure_container(
        &self,
        id: ContainerId,
        spec: &ContainerSpec,
    ) -> Result<(), ContainerError> {
        self.state().containers.reconfigure(id, spec)
    }

    /// The container of a name.
    pub fn container(&self, name: &str) -> Option<ContainerId> {
        self.state().containers.find(name)
    }

    /// What a container has used.
    ///
    /// # Errors
    /// [`ContainerError::Unknown`]
    pub fn container_usage(&self, id: ContainerId) -> Result<ContainerUsage, ContainerError> {
        let state = self.state();
        Ok(state.containers.usage(state.containers.index(id)?))
    }

    /// All containers, the one for what nobody else is charged for first.
    pub fn containers(&self) -> Vec<ContainerReport> {
        let state = self.state();
        let report = |id: ContainerId| ContainerReport {
            id,
            name: state.containers.name(id.index).to_owned(),
            usage: state.containers.usage(id.index),
        };
        state.containers.all().map(report).collect()
    }

    /// Switches how received packets are dealt with. What has arrived before is not lost.
    pub fn set_rx_policy(&self, policy: RxPolicy) {
        self.reschedule(|state| state.policy = policy);
    }

    /// How received packets are dealt with.
    pub fn rx_policy(&self) -> RxPolicy {
        self.state().policy
    }

    /// Runs a future as a task of a container. Tasks that it spawns are of the same one.
    ///
    /// # Errors
    /// [`SpawnError`]
    pub fn spawn_in<T: 'static>(
        &self,
        container: ContainerId,
        future: impl Future<Output = T> + 'static,
    ) -> Result<JoinHandle<T>, SpawnError> {
        let leaf = self.state().containers.leaf(container)?;
        let handle = self.spawn(future)?;
        self.state().set_task_container(handle.task(), leaf);
        Ok(handle)
    }

    /// Binds the task that runs to a container from now on: what it does is charged there.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn bind_task(&self, container: ContainerId) -> Result<(), ContainerError> {
        let mut state = self.state();
        let leaf = state.containers.leaf(container)?;
        if let Some(task) = self.0.executor.current() {
            state.set_task_container(task, leaf);
        }
        Ok(())
    }

    /// The container of the task that runs.
    pub fn current_container(&self) -> ContainerId {
        let state = self.state();
        state.containers.id(state.standing_of(self.0.executor.current()).container)
    }

    /// As [`Self::listen`], for clients whose address begins with `prefix` alone, on behalf of a
    /// container: one port may have several such listeners, and the longest prefix wins. So a few
    /// clients, or attackers, can be kept apart from all others.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn listen_filtered(
        &self,
        address: impl Into<SocketAddr>,
        backlog: usize,
        prefix: Prefix,
        container: ContainerId,
    ) -> Result<TcpListener, ListenError> {
        let mut state = self.state();
        let leaf = state.containers.leaf(container)?;
        let number = state.listen(address.into(), backlog, Some(prefix), leaf)?;
        drop(state);
        Ok(TcpListener::new(self.clone(), number))
    }

    /// As [`Self::listen`], on behalf of a container.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn listen_in(
        &self,
        address: impl Into<SocketAddr>,
        backlog: usize,
        container: ContainerId,
    ) -> Result<TcpListener, ListenError> {
        let mut state = self.state();
        let leaf = state.containers.leaf(container)?;
        let number = state.listen(address.into(), backlog, None, leaf)?;
        drop(state);
        Ok(TcpListener::new(self.clone(), number))
    }

    /// Changes something on which it depends whether containers are scheduled, and takes account of it.
    fn reschedule(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let state = &mut *state;
        let before = state.policy;
        change(state);
        let lazy = matches!(state.policy, RxPolicy::Lrp | RxPolicy::Srp);
        let several = state.containers.are_several();
        let scheduled = several || state.policy != RxPolicy::Lrp || self.0.clock_spends;
        if scheduled && state.agenda.is_none() {
            let (limits, containers) = (&state.limits, &state.containers);
            let agenda = Agenda::new(limits.connections, limits.tasks, containers);
            state.agenda = Some(Box::new(agenda));
        }
        if let Some(agenda) = state.agenda.as_deref_mut() {
            let last = state.containers.all().map(|id| id.index).max().unwrap_or(DEFAULT);
            agenda.make_room_for(last);
        }
        if self.0.scheduled.get() && (before != state.policy || !scheduled) {
            state.flush_agenda(&self.0.executor);
        }
        self.0.scheduled.set(scheduled);
        self.0.executor.set_receives(if scheduled && lazy { 1 } else { RECEIVES_A_RUN });
    }

    /// Takes account of the policy that the shard was started with.
    pub(crate) fn schedule_as_configured(&self) {
        self.reschedule(|_| {});
    }
}

impl Stack {
    /// A queue of at most `capacity` requests to workers; see [`RequestQueue`].
    pub fn request_queue<Q, R>(&self, capacity: usize) -> (Requests<Q, R>, RequestQueue<Q, R>) {
        requests::queue(self, capacity)
    }
}

impl State {
    /// How a task stands; without one, as what is bound to no other container.
    pub fn standing_of(&self, task: Option<u32>) -> Standing {
        let base = Standing { container: DEFAULT, priority: self.containers.priority(DEFAULT) };
        match (self.agenda.as_deref(), task) {
            (Some(agenda), Some(task)) => agenda.standings.effective(task),
            _ => base,
        }
    }

    /// The container of a task by itself, whatever it inherits.
    pub fn own_container_of(&self, task: Option<u32>) -> u16 {
        match (self.agenda.as_deref(), task) {
            (Some(agenda), Some(task)) => agenda.standings.own(task).container,
            _ => DEFAULT,
        }
    }

    /// Binds a task to a container.
    pub fn set_task_container(&mut self, task: u32, leaf: u16) {
        let standing = Standing { container: leaf, priority: self.containers.priority(leaf) };
        let before = self.own_container_of(Some(task));
        let bound = self.with_standings(|standings, changed| {
            standings.set_own(task, standing, changed);
        });
        if bound.is_some() {
            self.containers.bind(before, -1);
            self.containers.bind(leaf, 1);
        }
    }

    /// A task was spawned: it is of its maker's container.
    pub fn task_spawned(&mut self, task: u32, maker: Option<u32>) {
        let leaf = self.own_container_of(maker);
        self.containers.bind(DEFAULT, 1);
        self.set_task_container(task, leaf);
    }

    /// Names the owner of a connection.
    pub fn set_conn_owner(&mut self, conn: u32, leaf: u16) {
        if let Some(agenda) = self.agenda.as_deref_mut() {
            agenda.set_owner(conn, leaf, &mut self.containers);
        }
    }

    /// A task opens a connection: it is of the task's container.
    pub fn conn_opened_by(&mut self, conn: u32, task: Option<u32>) {
        let leaf = self.own_container_of(task);
        if leaf != DEFAULT {
            self.set_conn_owner(conn, leaf);
        }
    }

    /// What is to be called when packets have come for a connection.
    pub fn signal_handler(&self, conn: u32) -> Option<std::rc::Rc<dyn Fn()>> {
        match self.agenda.as_deref()?.dispositions.get(&conn)? {
            Disposition::Catch(handler) => Some(std::rc::Rc::clone(handler)),
            _ => None,
        }
    }

    /// That was done: the next packet is told of again.
    pub fn signalled(&mut self, conn: u32) {
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.channel.scheduled = false;
        }
    }

    /// Wakes whoever waits to read from a connection.
    pub fn wake_reader(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        if conn.facts.contains(Facts::READ_WAITING) {
            conn.facts.remove(Facts::READ_WAITING);
            if let Some(waker) = &conn.read_waker {
                waker.wake_by_ref();
            }
        }
    }

    fn set_disposition(&mut self, id: ConnId, disposition: Disposition) {
        let Some(conn) = self.conns.named_mut(id) else { return };
        conn.facts.set(Facts::LAZY, matches!(disposition, Disposition::Ignore));
        // What has waited is told of anew, to whoever is to know now.
        if !conn.channel.is_empty() {
            conn.channel.scheduled = true;
            self.ready.push_back(Receiver::Conn(id.number));
        }
        if let Some(agenda) = self.agenda.as_deref_mut() {
            match disposition {
                Disposition::Async => agenda.dispositions.remove(&id.number),
                other => agenda.dispositions.insert(id.number, other),
            };
        }
    }

    /// Processes packets that wait for a connection: as many as come to `bytes` together, and one at
    /// least. Returns how many that were.
    pub fn extract(&mut self, number: u32, bytes: usize) -> usize {
        let Some(conn) = self.conns.get_mut(number) else { return 0 };
        let count = self.channels.count_of_bytes(&conn.channel, bytes);
        if count == 0 {
            conn.channel.scheduled = false;
            return 0;
        }
        let mut rest = self.channels.split_off(&mut conn.channel, count);
        self.serve_conn(number);
        match self.conns.get_mut(number) {
            Some(conn) => self.channels.append(&mut conn.channel, rest),
            None => self.rx.drop_socket_closed += self.channels.clear(&mut rest),
        }
        usize::from(count)
    }
}

impl TcpListener {
    /// Binds the listener to a container, and the connections that it will open.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn bind_to(&self, container: ContainerId) -> Result<(), ContainerError> {
        let mut state = self.stack.state();
        let leaf = state.containers.leaf(container)?;
        let state = &mut *state;
        if let Some(listener) = state.listener_mut(u32::from(self.number)) {
            let before = std::mem::replace(&mut listener.container, leaf);
            state.containers.bind(before, -1);
            state.containers.bind(leaf, 1);
        }
        Ok(())
    }
}

impl TcpStream {
    /// Binds the connection to a container: its packets and timers are served when it is that one's
    /// turn, and charged to it. A connection that a peer opened is the listener's container's at first.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub fn bind_to(&self, container: ContainerId) -> Result<(), ContainerError> {
        let mut state = self.stack.state();
        let leaf = state.containers.leaf(container)?;
        if state.conns.named(self.id).is_some() {
            state.set_conn_owner(self.id.number, leaf);
        }
        Ok(())
    }

    /// The container that the connection is charged to.
    pub fn container(&self) -> ContainerId {
        let state = self.stack.state();
        let leaf = match state.conns.named(self.id) {
            Some(_) => state.owner_of(self.id.number),
            None => DEFAULT,
        };
        state.containers.id(leaf)
    }

    /// Says what happens when packets have come, under [`RxPolicy::Srp`]; it holds from the next turn
    /// of the loop on.
    pub fn set_disposition(&self, disposition: Disposition) {
        self.stack.state().set_disposition(self.id, disposition);
    }

    /// Processes packets that wait for the connection, as many as come to `bytes` together and one at
    /// least: so the receiver says how much work is done at a time. Returns how many that were.
    pub fn extract(&self, bytes: usize) -> usize {
        let mut state = self.stack.state();
        match state.conns.named(self.id) {
            Some(_) => state.extract(self.id.number, bytes),
            None => 0,
        }
    }
}
