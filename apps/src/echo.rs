//! `millstream echo`: the smallest service.

use std::net::SocketAddrV4;
use std::time::Duration;

use millstream::core::{Stack, TcpListener, TcpStream};

use crate::cli::EchoArgs;
use crate::config::Config;
use crate::error::AppError;
use crate::node::Node;
use crate::signals::Stop;

/// How often the loop looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Echoes until a signal comes.
pub fn run(args: &EchoArgs) -> Result<(), AppError> {
    let config = Config::load(&args.node.config, &args.node.overrides)?;
    let stop = Stop::install().map_err(AppError::runtime)?;
    let node = Node::open(&config)?;
    let address = SocketAddrV4::new(config.ipv4.address.ip, args.listen);
    let listener = node.stack().listen(address, 128).map_err(AppError::usage)?;
    println!("echoing on {address} | {}", node.facts());
    node.block_on(|stack| async move {
        let accepting = accept(stack.clone(), listener);
        stack.spawn(accepting).map_err(AppError::runtime)?;
        while !stop.is_asked() {
            stack.sleep(LOOK_EVERY).await;
        }
        Ok(())
    })
}

async fn accept(stack: Stack, listener: TcpListener) {
    loop {
        let (stream, peer) = listener.accept().await;
        if let Err(error) = stack.spawn(echo(stream)) {
            tracing::warn!(%peer, "{error}; the connection is closed");
        }
    }
}

async fn echo(stream: TcpStream) {
    stream.set_nodelay(true);
    while let Ok(Some(bytes)) = stream.read_buf().await {
        if stream.send_buf(bytes).await.is_err() {
            break;
        }
    }
}
