//! `millstream echo`: the smallest service.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use millstream::core::{Stack, TcpListener, TcpStream};

use crate::cli::EchoArgs;
use crate::config::Config;
use crate::error::AppError;
use crate::node::Node;
use crate::output::say;
use crate::signals::Stop;

/// How often the loop looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long peers have to end their side after a signal.
const DRAIN: Duration = Duration::from_secs(1);

/// Echoes until a signal comes, then ends the open connections.
pub fn run(args: &EchoArgs) -> Result<(), AppError> {
    let config = Config::load(&args.node.config, &args.node.overrides)?;
    let stop = Stop::install().map_err(AppError::runtime)?;
    let node = Node::open(&config)?;
    let address = config.listen_on(args.listen);
    let listener = node.stack().listen(address, 128).map_err(AppError::usage)?;
    say(format_args!("echoing on {} | {}", config.listens_on("", args.listen), node.facts()));
    node.block_on(|stack| async move {
        let open = Rc::<Open>::default();
        let accepting = accept(stack.clone(), listener, Rc::clone(&open));
        stack.spawn(accepting).map_err(AppError::runtime)?;
        while !stop.is_asked() {
            stack.sleep(LOOK_EVERY).await;
        }
        // Each peer sees the end of the stream, behind what is queued already.
        open.streams.borrow().values().for_each(|stream| stream.shutdown());
        let until = stack.now() + DRAIN;
        while !open.streams.borrow().is_empty() && stack.now() < until {
            stack.sleep(LOOK_EVERY).await;
        }
        // The last acknowledgements; who has not ended by now is told that we have.
        open.streams.borrow().values().for_each(|stream| stream.abort());
        stack.sleep(LOOK_EVERY).await;
        Ok(())
    })
}

/// The connections that are open, by number.
#[derive(Default)]
struct Open {
    streams: RefCell<HashMap<u64, Rc<TcpStream>>>,
    next: Cell<u64>,
}

async fn accept(stack: Stack, listener: TcpListener, open: Rc<Open>) {
    loop {
        let (stream, peer) = listener.accept().await;
        let (stream, number) = (Rc::new(stream), open.next.get());
        open.next.set(number + 1);
        open.streams.borrow_mut().insert(number, Rc::clone(&stream));
        let there = Rc::clone(&open);
        let task = async move {
            echo(&stream).await;
            there.streams.borrow_mut().remove(&number);
        };
        if let Err(error) = stack.spawn(task) {
            open.streams.borrow_mut().remove(&number);
            tracing::warn!(%peer, "{error}; the connection is closed");
        }
    }
}

async fn echo(stream: &TcpStream) {
    stream.set_nodelay(true);
    while let Ok(Some(bytes)) = stream.read_buf().await {
        if stream.send_buf(bytes).await.is_err() {
            break;
        }
    }
}
