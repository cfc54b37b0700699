// SPDX-License-Identifier: GPL-2.0-or-later
//
// Sends the same requests to the web service each time.
//
// usage: node requests.js PORT COUNT
//
// Every tenth request looks something up; all others add documents of 200 words.
'use strict';

const http = require('http');

const [port, count] = process.argv.slice(2).map(Number);
const CLIENTS = 4;
const WORDS = 200;
const agent = new http.Agent({ keepAlive: true, maxSockets: CLIENTS });
// A generator of our own, as that of the language cannot be seeded.
let seed = 1;
let sent = 0;

function word() {
    seed = (seed * 48271) % 2147483647;
    return 'w' + (seed % 5000);
}

function options() {
    const look = sent % 10 === 9;
    const path = look ? '/' + word() : '/';
    return { agent, host: '127.0.0.1', port, method: look ? 'GET' : 'POST', path };
}

function send() {
    if (sent === count)
        return;
    const chosen = options();
    sent += 1;
    const request = http.request(chosen, response => {
        if (response.statusCode !== 200)
            throw new Error(`status ${response.statusCode}`);
        response.resume();
        response.on('end', send);
    });
    const words = Array.from({ length: WORDS }, word);
    request.end(chosen.method === 'POST' ? JSON.stringify({ words }) : '');
}

for (let client = 0; client < CLIENTS; client += 1)
    send();
