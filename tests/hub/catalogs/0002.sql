-- Rows as revision 0001 had them.
INSERT INTO root (key,path,search,added,scanned,device,inode,fstype) VALUES (1,CAST('/models' AS BLOB),'/models',1,2,3,4,'ext4');
INSERT INTO content (key,size,header,sha256,digested,digested_mtime,digested_inode) VALUES (1,144,x'0a',x'abababababababababababababababababababababababababababababababab',9,5,6);
INSERT INTO file (key,root,path,size,mtime,inode,device,content) VALUES (1,1,CAST('llama.safetensors' AS BLOB),144,5,6,3,1);
INSERT INTO file (key,root,path,size,mtime,inode,device,content) VALUES (2,1,CAST('readme.txt' AS BLOB),1,5,7,3,NULL);
INSERT INTO tensor_names (key,digest,patterns,packed) VALUES (1,x'01','weight',x'789c2b4fcd4ccf28010008e60289');
INSERT INTO tensor_table (key,digest,names,packed) VALUES (1,x'02',1,x'0178018b8e562a4fcd4ccf28518ad5895672333602d106401c6da263121bab63a0136d01e456d7c6020009fc0c20');
INSERT INTO checkpoint (key,id,root,path,name,format,container,architecture,precision,dtypes,parameters,size,files,alone,tensors,state,reason,version,
  header,sha256,tensor_table,created_at,indexed_at,modified_at,derived_from,search)
  VALUES (1,'00000000000000aa',1,CAST('llama.safetensors' AS BLOB),'llama','safetensors','','','F32','{"F32":16}',16,144,1,1,1,'ready','',2,
  x'0a',x'abababababababababababababababababababababababababababababababab',1,1,2,5,'00000000000000bb','llama' || char(10) || 'llama.safetensors' || char(10));
INSERT INTO checkpoint_file (checkpoint,position,file) VALUES (1,0,1);
INSERT INTO description (checkpoint,metadata,stored) VALUES (1,'{"context_length":2048}','{"format":"pt"}');
INSERT INTO finding (key,checkpoint,level,name,severity,message,tensor,file,recorded) VALUES (1,1,'scan','padding','info','a gap','','',2);
INSERT INTO tensor_digests (key,contents,digests) VALUES (1,x'03',x'04');
INSERT INTO version (checkpoint,number,format,precision,parameters,size,header,sha256,tensor_table,modified_at,indexed_at,replaced_at)
  VALUES (1,1,'safetensors','F32',16,144,x'09',NULL,NULL,4,1,2);
INSERT INTO alias (name,checkpoint,version,created) VALUES ('llama@prod',1,2,2);
INSERT INTO tag (checkpoint,name,value) VALUES (1,'team','vision');
INSERT INTO note (key,checkpoint,text,created) VALUES (1,1,'trained on cats',2);
INSERT INTO lineage (key,checkpoint,version,parent,parent_path,parent_sha256,kind,plugin,plugin_version,recipe,options,errors,created)
  VALUES (1,1,2,NULL,CAST('/models/old.bin' AS BLOB),NULL,'conversion','safetensors','0.1.0','bf16','{}','{}',2);
INSERT INTO job (key,id,kind,state,priority,checkpoint,version,source,spec,action,origin,rule,attempts,crashes,max_attempts,created,started,finished,owner,
  done,total,output,made,result)
  VALUES (1,'0123abcd','convert','done',0,1,2,CAST('/models/llama.safetensors' AS BLOB),'{"to":"pytorch"}',x'05','rule','keep a copy',1,0,5,3,4,5,'',
  144,144,CAST('/models/llama.pt' AS BLOB),'','{}');
INSERT INTO job_log (key,job,at,level,message) VALUES (1,1,4,'info','began');
INSERT INTO dispatched (checkpoint,action,version,modified,at) VALUES (1,x'05',2,5,3);
INSERT INTO daemon (key,owner,started,beat,status) VALUES (1,'host:1:1',1,2,'{}');
