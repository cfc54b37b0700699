// SPDX-License-Identifier: GPL-2.0-or-later
//
// A web service: each request adds a document to a store, or finds some in it.
//
// usage: node service.js PORT MOST
//
// The store keeps the MOST latest documents.
'use strict';

const http = require('http');

const [port, most] = process.argv.slice(2).map(Number);
const documents = new Map();
let added = 0;

function add(text) {
    const words = JSON.parse(text).words;
    documents.set(added, { words, length: words.join(' ').length });
    documents.delete(added - most);
    added += 1;
    return { added };
}

function find(word) {
    const found = [...documents.values()].filter(d => d.words.includes(word));
    return { found: found.length, sample: found.slice(0, 10) };
}

http.createServer((request, response) => {
    let text = '';
    request.on('data', piece => { text += piece; });
    request.on('end', () => {
        const answer = request.method === 'POST' ? add(text) : find(request.url.slice(1));
        response.setHeader('Content-Type', 'application/json');
        response.end(JSON.stringify(answer));
    });
}).listen(port, '127.0.0.1', () => console.log('listening'));
