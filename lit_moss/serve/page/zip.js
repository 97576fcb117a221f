/** Files -> the bytes of a zip file, stored without compression (APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16). */

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Fields of 2 and 4 bytes, little-endian: [[size, value], …]. */
function fields(list) {
  const bytes = new Uint8Array(list.reduce((sum, [size]) => sum + size, 0));
  const view = new DataView(bytes.buffer);
  let place = 0;
  for (const [size, value] of list) {
    if (size === 2) view.setUint16(place, value, true);
    else view.setUint32(place, value, true);
    place += size;
  }
  return bytes;
}

/** @param {Record<string, Uint8Array>} files  by name */
export function zipOf(files) {
  const parts = [];
  const directory = [];
  let place = 0;
  for (const [name, bytes] of Object.entries(files)) {
    const nameBytes = new TextEncoder().encode(name);
    // Flag 0x800: names are UTF-8. Time 0, date 1980-01-01.
    const common = [
      [2, 20], [2, 0x800], [2, 0], [2, 0], [2, 33], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length],
      [2, nameBytes.length], [2, 0],
    ];
    parts.push(fields([[4, 0x04034b50], ...common]), nameBytes, bytes);
    directory.push(fields([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, place]]), nameBytes);
    place += 30 + nameBytes.length + bytes.length;
  }
  const count = directory.length / 2;
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = fields([[4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, place], [2, 0]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
