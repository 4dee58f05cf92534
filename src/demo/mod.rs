//! placeholder
pub fn run(_port: u16) -> std::io::Result<()> {
    Ok(())
}
pub fn serve(_name: &str, _port: u16) -> std::io::Result<()> {
    Ok(())
}
