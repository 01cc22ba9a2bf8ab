//! The generator over millstream's own stack.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use millstream::core::{Stack, TcpStream};

use super::progress::{Progress, TICK_NS};
use super::session::{Run, Session, Waits};
use super::tally::Failure;
use super::{CONNECT_TIMEOUT, Plan};

/// What the tasks of a run share.
struct Shared {
    run: RefCell<Run>,
    /// Connections that are being opened for the first time.
    connecting: RefCell<usize>,
    /// Those that wait for the beginning.
    at_start: RefCell<Vec<Waker>>,
    started: RefCell<bool>,
    alive: RefCell<usize>,
    why_not: RefCell<Option<String>>,
}

/// Runs a plan to its end on a shard.
///
/// # Errors
/// No connection could be opened, or the shard is too small for so many.
pub async fn run(stack: Stack, plan: Plan, run: Run) -> Result<Run, String> {
    let progress = Progress::new();
    let shared = Rc::new(Shared {
        run: RefCell::new(run),
        connecting: RefCell::new(plan.connections),
        at_start: RefCell::default(),
        started: RefCell::new(false),
        alive: RefCell::new(plan.connections),
        why_not: RefCell::default(),
    });
    for _ in 0..plan.connections {
        let task = connection(stack.clone(), plan, Rc::clone(&shared));
        stack.spawn(task).map_err(|error| format!("{error}; raise `limits.tasks`"))?;
    }
    while *shared.connecting.borrow() > 0 {
        stack.sleep(Duration::from_millis(1)).await;
    }
    if *shared.alive.borrow() == 0 {
        let why = shared.why_not.borrow_mut().take();
        return Err(why.unwrap_or_else(|| format!("cannot connect to {}", plan.remote)));
    }
    shared.run.borrow_mut().start(stack.now().as_nanos());
    *shared.started.borrow_mut() = true;
    shared.at_start.borrow_mut().drain(..).for_each(Waker::wake);

    let stop_ns = shared.run.borrow().schedule.end_ns() + plan.timeout.as_nanos() as u64;
    let mut shown_ns = stack.now().as_nanos();
    while *shared.alive.borrow() > 0 && stack.now().as_nanos() < stop_ns {
        stack.sleep(Duration::from_millis(2)).await;
        let now_ns = stack.now().as_nanos();
        if now_ns - shown_ns >= TICK_NS {
            shown_ns = now_ns;
            let mut run = shared.run.borrow_mut();
            run.tally.tick(now_ns);
            progress.show(&run, now_ns);
        }
    }
    shared.run.borrow_mut().finish(stack.now().as_nanos());
    // Tasks that still wait for an answer keep their handle; what they share is taken from them.
    let empty = Run::new(shared.run.borrow().schedule.clone(), super::Tally::new(false), "", &[]);
    Ok(shared.run.replace(empty))
}

/// One connection for as long as there is something to send, opened again where the server ends it.
async fn connection(stack: Stack, plan: Plan, shared: Rc<Shared>) {
    let mut session = Session::new(plan.pipeline);
    let mut first = true;
    loop {
        let opened = stack.timeout(CONNECT_TIMEOUT, stack.connect(plan.remote)).await;
        if first {
            *shared.connecting.borrow_mut() -= 1;
        }
        let stream = match opened {
            Some(Ok(stream)) => stream,
            refused => {
                shared.run.borrow_mut().tally.failed(Failure::Connect, 1);
                let why = refused.and_then(Result::err).map(|error| error.to_string());
                *shared.why_not.borrow_mut() = why;
                break;
            }
        };
        if first {
            first = false;
            poll_fn(|cx| {
                if *shared.started.borrow() {
                    return Poll::Ready(());
                }
                shared.at_start.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
        stream.set_nodelay(true);
        match converse(&stack, &stream, &shared, &mut session).await {
            Ok(true) => break,
            Ok(false) => session.ended(&mut shared.run.borrow_mut()),
            Err(_) => session.broken(&mut shared.run.borrow_mut(), Failure::Reset),
        }
        drop(stream);
        let mut run = shared.run.borrow_mut();
        if !session.wants_more(&run, stack.now().as_nanos()) {
            break;
        }
        run.tally.reconnects += 1;
    }
    *shared.alive.borrow_mut() -= 1;
}

/// Asks and hears until all is done (`true`) or the connection has ended in good order.
async fn converse(
    stack: &Stack,
    stream: &TcpStream,
    shared: &Shared,
    session: &mut Session,
) -> io::Result<bool> {
    let mut out = Vec::new();
    loop {
        let now = stack.now();
        let waits = session.fill(&mut shared.run.borrow_mut(), now.as_nanos(), &mut out);
        if !out.is_empty() {
            stream.write_all(&out).await?;
            out.clear();
        }
        let data = match waits {
            Waits::Finished => return Ok(true),
            Waits::Until(at) => {
                stack.sleep(Duration::from_nanos(at.saturating_sub(now.as_nanos()))).await;
                continue;
            }
            Waits::AnswerUntil(at) => {
                let span = Duration::from_nanos(at.saturating_sub(now.as_nanos()));
                match stack.timeout(span, stream.read_buf()).await {
                    Some(data) => data?,
                    None => continue,
                }
            }
            Waits::Answer => stream.read_buf().await?,
        };
        let Some(data) = data else { return Ok(false) };
        let now_ns = stack.now().as_nanos();
        let taken = session.received(&mut shared.run.borrow_mut(), now_ns, &data);
        if taken.is_err() || session.is_closing() {
            return Ok(false);
        }
    }
}
